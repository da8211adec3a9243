"""Globs as regular expressions."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable


def compile_globs(globs: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    """Patterns whose `match` accepts whole names: `*` is any text including dots; case matters."""
    return tuple(re.compile(fnmatch.translate(glob)) for glob in globs)
