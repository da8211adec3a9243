"""What a run has used of its caps."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from deltarank.jobs.endpoints.options import Caps
from deltarank.results import count, figure


class BudgetSpentError(Exception):
    """The next request would exceed a cap. The message says which, as a clause."""


@dataclass
class Spending:
    """Requests and tokens so far. What is in flight is reserved by its largest possible size."""

    caps: Caps
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _reserved: list[tuple[int, int]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Raises BudgetSpentError if a request of this size, beside those in flight, would exceed a cap."""
        with self._lock:
            self._reserved.append((prompt_tokens, completion_tokens))
            try:
                self._check()
            except BudgetSpentError:
                self._reserved.pop()
                raise

    def retry(self, prompt_tokens: int, completion_tokens: int) -> None:
        """An attempt in flight failed, after so many tokens at most, and another follows.

        Raises:
            BudgetSpentError: the other attempt would exceed a cap.
        """
        self.add(prompt_tokens, completion_tokens)
        with self._lock:
            self._check()

    def _check(self) -> None:
        prompt = self.prompt_tokens + sum(each[0] for each in self._reserved)
        completion = self.completion_tokens + sum(each[1] for each in self._reserved)
        if self.requests + len(self._reserved) > self.caps.max_requests:
            raise BudgetSpentError(f"the cap of {count(self.caps.max_requests, 'request')} is reached")
        if prompt + completion > self.caps.max_tokens:
            raise BudgetSpentError(f"the cap of {count(self.caps.max_tokens, 'token')} is reached")
        cost = self.caps.cost(prompt, completion)
        if cost is not None and self.caps.max_cost is not None and cost > self.caps.max_cost:
            raise BudgetSpentError(f"the cap of {figure(self.caps.max_cost)} for the cost is reached")

    def release(self, reserved: tuple[int, int]) -> None:
        with self._lock:
            self._reserved.remove(reserved)

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """A finished request."""
        with self._lock:
            self.requests += 1
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens

    @property
    def cost(self) -> float | None:
        return self.caps.cost(self.prompt_tokens, self.completion_tokens)
