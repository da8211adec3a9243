"""The data file, read once."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any


@cache
def load_data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("servers.json").read_text(encoding="utf-8"))
    return data


def compile_globs(globs: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(fnmatch.translate(glob)) for glob in globs)
