"""The versions of this installation."""

from __future__ import annotations

import platform

_NAMED = ("torch", "transformers", "peft")
"""The packages that decide about numbers, and about which models load."""


def tool_version() -> str:
    """The installed version of deltarank: "0.2.0"."""
    from importlib.metadata import version  # 30 ms, which `deltarank --help` need not spend

    return version("deltarank")


def installed_versions() -> list[str]:
    """A line each for deltarank, for Python and the system, and for torch, transformers and peft. Imports none."""
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return [f"deltarank {tool_version()}", system, *map(_version_line, _NAMED)]


def _version_line(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is not installed"
