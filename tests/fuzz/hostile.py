"""Untrusted input: valid data with a few edits, and limits on what reads it.

A case survives if it ends in an answer or in a `DeltarankError`, soon, without much memory. Cases are drawn from a
fixed seed, so that a run today and one tomorrow try the same ones.
"""

import copy
import json
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from deltarank.errors import DeltarankError

_T = TypeVar("_T")

MOST_SECONDS = 2.0
MOST_MEMORY = 32_000_000
"""Bytes that Python may take for an input of a few kilobytes."""

HANGS_AFTER = 30


def cases(number: int) -> settings:
    """So many cases, the same ones each time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=number, derandomize=True, database=None, deadline=None, suppress_health_check=slow)


def survives(action: Callable[[], _T]) -> _T | None:
    """What `action` returns, or None where it was refused in words of ours. Anything else fails the test."""
    started = time.process_time()
    tracemalloc.start()
    try:
        with _soon():
            return action()
    except DeltarankError as error:
        refusal = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_MEMORY, f"{peak:,} bytes"
        assert time.process_time() - started < MOST_SECONDS
    assert refusal.cure
    assert refusal.slug
    assert len(str(refusal)) < 4000
    return None


@contextmanager
def _soon() -> Iterator[None]:
    """A hang becomes a failure, where the system can do that."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise AssertionError(f"it hangs: {HANGS_AFTER} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


WORDS = st.sampled_from(
    [
        *("", ".", "..", "weight", "model.layers.0.self_attn.q_proj.weight", "0", "-1", "1e999", "\0", "\n", "\x1b[2J"),
        *("../../etc/passwd", "/etc/passwd", "C:\\x", "a" * 3000, "(a+)+$", "BF16", "<script>", "\u202e", "💥"),
        *("__metadata__", "lora_A", "layers.999999999999.x", "." * 500),
    ]
)
NUMBERS = st.sampled_from(
    [
        *(0, 1, -1, 2, 7, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400),
        *(0.0, -0.0, 0.5, 1.5, -1.5, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan")),
    ]
)
SCALARS = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=12)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoilt(draw: st.DrawFn, whole: Any) -> Any:
    """A JSON value in which one to three places hold something else, are gone, or are nested in themselves."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        value = _edited(draw, value)
    return value


def _edited(draw: st.DrawFn, value: Any) -> Any:
    places = list(_places(value))
    if not places:
        return draw(JSON)
    holder, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "replace", "drop", "nest", "rename", "twin"])):
        case "replace":
            holder[key] = draw(JSON)
        case "drop":
            del holder[key]
        case "nest":
            holder[key] = [holder[key]] if draw(st.booleans()) else {"": holder[key]}
        case "rename" if isinstance(holder, dict):
            holder[draw(WORDS)] = holder.pop(key)
        case _:
            other, place = draw(st.sampled_from(places))
            if isinstance(other, dict) or place < len(other):
                holder[key] = copy.deepcopy(other[place])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of everything inside."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


JUNK = st.sampled_from([b"{", b"}", b"[" * 2000, b'"', b"9" * 40, b"\\u0000", b","])


@st.composite
def torn(draw: st.DrawFn, whole: bytes, *, head: int = 1 << 30) -> bytes:
    """Bytes in which one to four places of the first `head` were changed, cut out, repeated or filled with others."""
    content = whole
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(content), head)))
        length = draw(st.sampled_from([0, 1, 1, 2, 8, 50, 1 << 20]))
        junk = draw(st.binary(max_size=9) | JUNK)
        repeated = content[at : at + length] * draw(st.integers(0, 2))
        content = content[:at] + junk + repeated[:10_000] + content[at + length :]
    return content


def as_json(value: Any) -> bytes:
    """As a careless writer would: with NaN and Infinity, and halves of surrogate pairs spelled out."""
    return json.dumps(value).encode()
