"""Vega, Vega-Lite and Vega-Embed as one script, from vl_convert.

Making it takes 1.5 s, and it is the same for one version of vl_convert: the user's cache folder keeps it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from deltarank.report.drawing.draw import drawing_process, finish_bundle, start_bundle
from deltarank.system import write_text_atomically


@cache
def vega_bundle() -> str:
    """The script, safe inside a script element."""
    script = _cached() or _make()
    # Neither occurs today; either would end the script element early, wherever in the code it stood.
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r\n", "\n").replace("\r", "\n")


def prepare_vega_bundle() -> None:
    """Has this thread's drawing process, if any, make the script unless it is cached."""
    with suppress(OSError, RuntimeError):  # there is no home folder
        if not _cache_file().exists():
            start_bundle()


def _make() -> str:
    with drawing_process():
        start_bundle()
        script = finish_bundle() or _make_here()
    _write_cache(script)
    return script


def _make_here() -> str:
    import vl_convert

    script: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # None is its default
    return script


def _cache_folder() -> Path:
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home, "deltarank")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "deltarank"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local, "deltarank", "Cache")
    return Path.home() / ".cache" / "deltarank"


def _cache_file() -> Path:
    return _cache_folder() / f"vega-{version('vl-convert-python')}.js"


def _cached() -> str | None:
    """The cached script, if its first line is the hash of the rest: a torn or altered file is made again."""
    try:
        first, _, script = _cache_file().read_bytes().decode().partition("\n")
    except (OSError, ValueError, RuntimeError):
        return None
    return script if script and first == _seal(script) else None


def _write_cache(script: str) -> None:
    """Writes beside the file and renames. A folder that cannot be written costs time, nothing else."""
    try:
        file = _cache_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, f"{_seal(script)}\n{script}")
    except (OSError, ValueError, RuntimeError):
        return


def _seal(script: str) -> str:
    return "// " + hashlib.sha256(script.encode()).hexdigest()
