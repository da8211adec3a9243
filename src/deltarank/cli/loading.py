"""Loading torch, and the rooms that need it."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def loading() -> Iterator[None]:
    """For imports that bring a million objects which stay to the end.

    The collector of cycles would look through them again and again on the way, a fifth of the time, and once more at
    the exit, 0.25 s. It is off meanwhile, and leaves them alone for good.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        with _heard():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _heard() -> Iterator[None]:
    """Ctrl-C stops the command, even where the import in hand swallows it, as parts of torch's do."""
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
