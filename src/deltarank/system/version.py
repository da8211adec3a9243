"""The version of this installation."""

from __future__ import annotations


def tool_version() -> str:
    """The installed version of deltarank: "0.2.0"."""
    from importlib.metadata import version  # 30 ms, which `deltarank --help` need not spend

    return version("deltarank")
