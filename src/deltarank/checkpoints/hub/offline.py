"""Work without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hub_cache_only() -> Iterator[None]:
    """Nothing is asked of the Hub, as with HF_HUB_OFFLINE: a model that is not whole in its cache cannot be opened."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
