"""Imports of torch and of the packages that need it."""

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
    """Switch the garbage collector off during imports that create a million permanent objects.

    It would scan them repeatedly, for a fifth of the import time, and once more at exit (0.25 s). Afterwards the
    objects are frozen: the collector never scans them.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        with _sigint_kept():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _sigint_kept() -> Iterator[None]:
    """Ctrl-C stops the command even if an import swallows the KeyboardInterrupt, as parts of torch do."""
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
