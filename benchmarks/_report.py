"""Markdown tables, the machine's description, raw figures as JSON in `benchmarks/out/`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _shapes import Pair

OUT = Path(__file__).with_name("out")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=OUT / "data", help="where the pairs lie (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a small pair: does it run at all?")
    return parser


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table: the first column to the left, the others to the right."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save(name: str, figures: Any) -> Path:
    """Writes `benchmarks/out/NAME.json` with the machine beside the figures."""
    OUT.mkdir(parents=True, exist_ok=True)
    target = OUT / f"{name}.json"
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1))
    partial.replace(target)
    return target


def load(name: str) -> Any:
    """The figures of an earlier run, or None."""
    try:
        return json.loads((OUT / f"{name}.json").read_text())["figures"]
    except (OSError, ValueError, KeyError):
        return None


@cache
def machine() -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("deltarank", "torch", "numpy", "scipy", "safetensors")},
        "commit": _commit(),
    }


def machine_line() -> str:
    known = machine()
    return (
        f"{known['processor']}, {known['cores']} cores, {known['memory_gb']} GB; Python {known['python']}, "
        f"torch {known['packages']['torch']}; {known['started']}, commit {known['commit']}."
    )


def python(*arguments: str | Path) -> list[str | Path]:
    """A command for the interpreter that runs this benchmark."""
    return [sys.executable, *arguments]


def deltarank(pair: Pair, out: Path, *options: str) -> list[str | Path]:
    """What a user types, less the progress bar."""
    return python("-m", "deltarank", "compare", pair.base, pair.finetune, "-o", out, "-q", *options)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=OUT.parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
