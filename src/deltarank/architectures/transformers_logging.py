"""transformers' own messages, kept out of the user's terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Hides transformers' progress bars and warnings: what matters to the user, deltarank says itself."""
    from transformers.utils import logging as _logging

    logging: Any = _logging  # untyped
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, which transformers follows with pages of advice."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line[:300]}"
