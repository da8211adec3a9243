"""Vega, Vega-Lite and Vega-Embed as one script, from vl_convert.

Making it takes 1.5 s, and it is the same for one version of vl_convert: it is kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from deltarank.report.drawing.draw import begin_script, drawing_ahead, finished_script


@cache
def vega() -> str:
    """The script, safe to stand inside an element."""
    script = _kept() or _made()
    # Neither occurs today; either would end the script element early, wherever in the code it stood.
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n").replace("\r", "\n")


def begin() -> None:
    """Has it made meanwhile, if there is a helper and none is kept."""
    with suppress(OSError, RuntimeError):  # no home
        if not _place().exists():
            begin_script()


def _made() -> str:
    with drawing_ahead():
        begin_script()
        script = finished_script() or _made_here()
    _keep(script)
    return script


def _made_here() -> str:
    import vl_convert

    script: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # None is its default
    return script


def cache_folder() -> Path:
    """Where programs of this user keep what they can make again."""
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home, "deltarank")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "deltarank"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local, "deltarank", "Cache")
    return Path.home() / ".cache" / "deltarank"


def _place() -> Path:
    return cache_folder() / f"vega-{version('vl-convert-python')}.js"


def _kept() -> str | None:
    """What was kept, if its first line still is the hash of the rest: a torn or altered file is made again."""
    try:
        first, _, script = _place().read_bytes().decode().partition("\n")
    except (OSError, ValueError, RuntimeError):
        return None
    return script if script and first == _seal(script) else None


def _keep(script: str) -> None:
    """Beside its place and renamed; a folder that cannot be written costs time, nothing else."""
    try:
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
        partial.write_bytes(f"{_seal(script)}\n{script}".encode())
        partial.replace(place)
    except (OSError, ValueError, RuntimeError):
        return


def _seal(script: str) -> str:
    return "// " + hashlib.sha256(script.encode()).hexdigest()
