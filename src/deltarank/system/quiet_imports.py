"""Imports of libraries that log or warn while they are imported."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


@contextmanager
def silence_logging() -> Iterator[None]:
    """Suppresses warnings and all log records below an error inside the block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def import_silently(name: str) -> ModuleType:
    """Imports a module under `silence_logging`. Raises what importing it raises."""
    with silence_logging():
        return import_module(name)
