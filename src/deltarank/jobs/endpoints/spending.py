"""What a run has used of its caps."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
    _lock: threading.Condition = field(default_factory=threading.Condition)

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Waits until a request of this size fits beside those in flight, which may take less than is reserved.

        Raises:
            BudgetSpentError: it would exceed a cap with none in flight.
        """
        with self._lock:
            while not self._fits(prompt_tokens, completion_tokens):
                self._lock.wait()
            self._reserved.append((prompt_tokens, completion_tokens))

    def _fits(self, *more: int) -> bool:
        try:
            self._check(more)
        except BudgetSpentError:
            if not self._reserved:
                raise
            return False
        return True

    def retry(self, prompt_tokens: int, completion_tokens: int) -> None:
        """An attempt in flight failed, after so many tokens at most, and another follows.

        Raises:
            BudgetSpentError: the other attempt would exceed a cap.
        """
        self.add(prompt_tokens, completion_tokens)
        with self._lock:
            self._check()

    def _check(self, *more: Sequence[int]) -> None:
        """Raises BudgetSpentError if those in flight, and these, may exceed a cap."""
        pending = [*self._reserved, *more]
        prompt = self.prompt_tokens + sum(each[0] for each in pending)
        completion = self.completion_tokens + sum(each[1] for each in pending)
        if self.requests + len(pending) > self.caps.max_requests:
            raise BudgetSpentError(f"the cap of {count(self.caps.max_requests, 'request')} is reached")
        if prompt + completion > self.caps.max_tokens:
            raise BudgetSpentError(f"the cap of {count(self.caps.max_tokens, 'token')} is reached")
        cost = self.caps.cost(prompt, completion)
        if cost is not None and self.caps.max_cost is not None and cost > self.caps.max_cost:
            raise BudgetSpentError(f"the cap of {figure(self.caps.max_cost)} for the cost is reached")

    def settle(self, reserved: tuple[int, int], used: tuple[int, int] | None) -> None:
        """A request in flight has ended, after so many tokens; None: its last attempt was not sent."""
        with self._lock:
            self._reserved.remove(reserved)
            if used is not None:
                self._add(*used)
            self._lock.notify_all()

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """A finished request."""
        with self._lock:
            self._add(prompt_tokens, completion_tokens)

    def _add(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    @property
    def cost(self) -> float | None:
        return self.caps.cost(self.prompt_tokens, self.completion_tokens)
