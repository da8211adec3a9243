"""Loading torch, and the rooms that need it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
        yield
    finally:
        gc.freeze()
        gc.enable()
