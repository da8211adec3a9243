"""Libraries that talk while they are imported: of kernels that they would like to have, of what they will change."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


@contextmanager
def silence_logging() -> Iterator[None]:
    """Nothing under an error is logged, and no warning shown: not in a user's terminal, whose business it is not."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def import_silently(name: str) -> ModuleType:
    """Raises what importing it raises."""
    with silence_logging():
        return import_module(name)
