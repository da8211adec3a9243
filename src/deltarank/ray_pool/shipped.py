"""What a worker of the cluster runs first. Ray ships this module by value, since the worker may have no deltarank.

It imports nothing but the standard library until the versions are known to agree.
"""

from __future__ import annotations

from typing import Any

PACKAGES = ("deltarank", "torch")


def versions() -> dict[str, str]:
    """Those that decide numbers and how a task is read, of this process. "" of what is not installed."""
    import platform
    from importlib import metadata

    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package).partition("+")[0]  # "+cpu" is the build
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def run_task(expected: dict[str, str], call: tuple[Any, ...]) -> tuple[str, Any]:
    """Runs a task in a worker: ("done", results), ("failed", an error), or ("versions", the node and its versions)."""
    import socket

    node = socket.gethostname()
    found = versions()
    if found != expected:
        return "versions", (node, found)
    from deltarank.ray_pool.worker_process import run

    return run(node, *call)
