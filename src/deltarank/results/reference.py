"""Which checkpoint was read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from deltarank.results.codec import Count

_SNAPSHOT = re.compile(r"models--(?:[^/]+--)?(?P<name>[^/]+)/snapshots/[^/]+/?$")


@dataclass(frozen=True)
class Reference:
    """A checkpoint as it was named, and what that name stood for.

    revision         the commit on the Hub; None for local files
    files            file name -> size in bytes
    """

    ref: str
    revision: str | None = None
    files: Mapping[str, Count] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """What a reader calls the model: the last part of the reference; of a snapshot in the Hub's cache, its name."""
        cached = _SNAPSHOT.search(self.ref)
        tail = cached["name"] if cached else self.ref.rstrip("/").rsplit("/", 1)[-1]
        return tail.removesuffix(".safetensors") or self.ref
