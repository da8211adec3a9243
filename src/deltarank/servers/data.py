"""The data file, read once."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def load_data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("servers.json").read_text(encoding="utf-8"))
    return data
