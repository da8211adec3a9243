"""Every request and its answer, as RUN/exchanges.jsonl keeps them, to resume a run and to analyse it again offline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

EXCHANGES = "exchanges.jsonl"


@dataclass(frozen=True)
class Request:
    """What is asked of one endpoint.

    key          names the request within the run: the endpoint, the purpose, the prompt, the draw
    is_optional  whether a failure only means that the endpoint cannot do this
    """

    side: str
    key: str
    path: str
    body: Mapping[str, Any]
    is_optional: bool = False


@dataclass(frozen=True)
class Exchange:
    """A request and what came of it: a payload, or the status and the reason of a refusal."""

    request: Mapping[str, Any]
    payload: Mapping[str, Any] | None
    refused: tuple[int, str] | None = None
    seconds: float = 0.0

    @property
    def is_refused(self) -> bool:
        return self.payload is None


def to_record(request: Request, exchange: Exchange, at: str) -> dict[str, Any]:
    return {
        "side": request.side,
        "key": request.key,
        "at": at,
        "path": request.path,
        "request": dict(request.body),
        "response": exchange.payload,
        "refused": list(exchange.refused) if exchange.refused else None,
        "seconds": round(exchange.seconds, 4),
    }


def failure_record(request: Request, tokens: tuple[int, int], at: str) -> dict[str, Any]:
    """An attempt that failed, and the tokens of the prompt and of the answer that it may have used."""
    return {"side": request.side, "key": request.key, "at": at, "failed": list(tokens)}


def read_failures(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(side, tokens) of each attempt that failed."""
    for record in records:
        tokens = record.get("failed")
        if isinstance(tokens, list) and len(tokens) == 2 and all(type(each) is int for each in tokens):
            yield str(record.get("side")), (tokens[0], tokens[1])


def read_exchanges(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Exchange]:
    """(side, key) -> exchange. Records that are something else are passed over: the file may have been edited."""
    found = {}
    for record in records:
        payload, refused, request = record.get("response"), record.get("refused"), record.get("request")
        is_refusal = isinstance(refused, list) and len(refused) == 2
        if isinstance(request, dict) and (isinstance(payload, dict) or is_refusal):
            where = str(record.get("side")), str(record.get("key"))
            found[where] = Exchange(
                request,
                payload if isinstance(payload, dict) else None,
                (int(refused[0]), str(refused[1])) if isinstance(refused, list) and is_refusal else None,
                float(record.get("seconds") or 0.0),
            )
    return found
