"""Asks both endpoints: what was asked before is taken from the exchanges, everything else counts against the caps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any

from deltarank.errors import JobError
from deltarank.jobs.endpoints.spending import BudgetSpentError, Spending
from deltarank.openai_api import (
    OPTIONAL_TRIES,
    TRIES,
    EndpointClient,
    Exchange,
    Request,
    RequestRefusedError,
    failure_record,
    most_tokens,
    read_exchanges,
    read_failures,
    read_usage,
    to_record,
)
from deltarank.runtime import utc_timestamp

Keep = Callable[[Mapping[str, Any]], None]


class Asker:
    """The two endpoints, and every exchange with them so far."""

    def __init__(
        self,
        clients: Mapping[str, EndpointClient],
        spending: Mapping[str, Spending],
        records: Sequence[Mapping[str, Any]],
        keep: Keep,
        *,
        concurrency: int,
    ) -> None:
        """
        Args:
            clients: by side, "a" and "b"; empty: offline, where only what was asked before is answered.
            spending: the same object for both sides counts them together.
            keep: stores a record.
            concurrency: requests in flight at each endpoint.
        """
        self._clients = clients
        self._spending = spending
        self._known = read_exchanges(records)
        self._keep = keep
        self._lock = threading.Lock()
        self._turns = {side: threading.Semaphore(concurrency) for side in clients}
        # Its threads do not keep the process alive: after Ctrl-C, nobody waits for the answers to requests in flight.
        self._pool = ThreadPool(max(1, concurrency * len(clients)))
        self._excess = dict.fromkeys(spending, (0, 0))
        for (side, _), exchange in self._known.items():
            spending[side].add(*self._used(side, exchange))
        for side, tokens in read_failures(records):
            if side in spending:
                spending[side].add(*tokens)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._pool.terminate()

    @property
    def asked(self) -> Mapping[tuple[str, str], Exchange]:
        """Every exchange, by side and key."""
        return self._known

    def ask(self, request: Request) -> Exchange:
        """One exchange.

        Raises:
            BudgetSpentError: it was not asked before, and a cap is reached, or this is offline.
            JobError: the endpoint gives no usable answer.
        """
        known = self._known.get((request.side, request.key))
        if known is not None:
            return known
        if request.side not in self._clients:
            raise BudgetSpentError("the exchanges end there")
        exchange = self._send(request)
        with self._lock:
            self._known[request.side, request.key] = exchange
            self._keep(to_record(request, exchange, utc_timestamp()))
        return exchange

    def ask_all(self, requests: Sequence[Request]) -> list[Exchange]:
        """Several at a time, started in this order. If one fails, the answers to the others are kept."""
        asked = [self._pool.apply_async(self.ask, (request,)) for request in requests]
        errors = [error for each in asked if (error := _error_of(each)) is not None]
        if errors:
            raise next((each for each in errors if not isinstance(each, BudgetSpentError)), errors[0])
        return [each.get() for each in asked]

    def _send(self, request: Request) -> Exchange:
        """Counts against the caps with the most tokens that it may take, and then with those that it took."""
        spending, reserved = self._spending[request.side], self._most_tokens(request.side, request.body)
        spending.reserve(*reserved)
        used: tuple[int, int] | None = reserved
        try:
            with self._turns[request.side]:
                exchange = self._post(request, reserved)
            used = self._used(request.side, exchange)
        except BudgetSpentError:
            used = None
            raise
        finally:
            spending.settle(reserved, used)
        return exchange

    def _post(self, request: Request, reserved: tuple[int, int]) -> Exchange:
        spending = self._spending[request.side]

        def retry(may_be_billed: bool) -> None:
            tokens = reserved if may_be_billed else (0, 0)
            self._keep_failure(request, tokens)
            spending.retry(*tokens)

        try:
            reply = self._clients[request.side].post(
                request.path,
                request.body,
                tries=OPTIONAL_TRIES if request.is_optional else TRIES,
                on_retry=retry,
            )
        except RequestRefusedError as refusal:
            return Exchange(request.body, None, (refusal.status, refusal.message))
        except JobError as error:
            if not request.is_optional:
                self._keep_failure(request, reserved)
                raise
            return Exchange(request.body, None, (0, error.message))
        return Exchange(request.body, reply.payload, None, reply.seconds)

    def _keep_failure(self, request: Request, tokens: tuple[int, int]) -> None:
        """An attempt that failed counts after the run was resumed, too."""
        with self._lock:
            self._keep(failure_record(request, tokens, utc_timestamp()))

    def _most_tokens(self, side: str, body: Mapping[str, Any]) -> tuple[int, int]:
        """Of a request to this endpoint, at most, as far as its answers have shown what it adds."""
        prompt, answer = most_tokens(body)
        return prompt + self._excess[side][0], answer + self._excess[side][1]

    def _used(self, side: str, exchange: Exchange) -> tuple[int, int]:
        """The tokens of an exchange: what the endpoint counted, or else the most that it may have been."""
        usage, (prompt, answer) = read_usage(exchange.payload or {}), most_tokens(exchange.request)
        at_most = self._most_tokens(side, exchange.request)
        used = (
            at_most[0] if usage.prompt_tokens is None else usage.prompt_tokens,
            at_most[1] if usage.completion_tokens is None else usage.completion_tokens,
        )
        with self._lock:
            known = self._excess[side]
            self._excess[side] = max(known[0], used[0] - prompt), max(known[1], used[1] - answer)
        return used


def _error_of(asked: AsyncResult[Exchange]) -> Exception | None:
    """Waits for the end."""
    asked.wait()
    try:
        asked.get()
    except Exception as error:
        return error
    return None
