"""The Ray cluster that the tasks of a job run on: a running one, or one that is started here and ends with the job."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deltarank.errors import JobError, UsageError
from deltarank.runtime import use_pools

AUTO = "auto"
"""The address of the cluster that runs on this machine, or that RAY_ADDRESS names, as Ray has it."""

_ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")

OBJECT_STORE_BYTES = 256 << 20
"""Of a cluster started here. Tasks and results are small: the largest are the factors of one matrix."""

_CONNECT_SECONDS = 10.0


@contextmanager
def on_ray(address: str | None = None) -> Iterator[None]:
    """The jobs of the block run their matrices on a Ray cluster. All their numbers stay the same.

        with deltarank.on_ray("head.example:6379"):
            deltarank.fleet("org/base", finetunes, output="fleet")

    Each machine of the cluster needs this version of deltarank, Python and torch, and the files of the models under the
    same paths. The results are written by this process alone.

    Args:
        address: "host:port" of a running cluster, or "auto" for the one of this machine. None: a cluster is started
            here and ends with the block. A connection to a cluster that this process has already is used.

    Raises:
        UsageError: (slug "bad-ray-address") it is no address.
        JobError: (slug "no-ray") Ray is not installed; (slug "no-ray-cluster") no cluster answers there; (slug
            "ray-versions") it has another version of Ray or Python.
    """
    _check_address(address)
    _check_installed()
    with _connected(address):
        from deltarank.ray_pool.pool import RayPool  # imports Ray

        with use_pools(RayPool):
            yield


def _check_address(address: str | None) -> None:
    if address is not None and address != AUTO and _ADDRESS.fullmatch(address) is None:
        raise UsageError(
            f"{address!r} is not the address of a Ray cluster.",
            cure="Give HOST:PORT, or auto for the cluster of this machine. To start one here, write --ray after the "
            "arguments of the command, without an address.",
            slug="bad-ray-address",
        )


def _check_installed() -> None:
    if importlib.util.find_spec("ray") is None:
        raise JobError(
            "Ray is not installed.",
            cure="Install it: pip install 'deltarank[ray]'. Without --ray, the job runs on the cores of this machine.",
            slug="no-ray",
        )


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's authors
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it, each task without a GPU warns
    import ray

    if ray.is_initialized():
        yield
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    folder = None if address else tempfile.mkdtemp(prefix="deltarank-ray-")
    try:
        with _without_warnings():
            _ = ray.init(**_join(address) if address else _start(folder), **quiet)
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str | None) -> dict[str, Any]:
    """A new cluster of this machine. Its files are in a folder of its own."""
    return {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": folder,
    }


def _join(address: str) -> dict[str, Any]:
    """A running cluster. Ray itself waits for minutes where nobody answers, so this asks first."""
    match = _ADDRESS.fullmatch(address)
    if match is not None:
        try:
            socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(f"{address} does not answer ({getattr(error, 'strerror', None) or error})") from None
    return {"address": address}


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What Ray says when it starts is for those who run a cluster. Its errors become ours."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ConnectionError as error:
        nowhere = "none runs on this machine, and RAY_ADDRESS names none"
        raise _no_cluster(nowhere if "any running" in str(error) else _first_line(error)) from None
    except (RuntimeError, ValueError) as error:
        if "Version mismatch" not in str(error):
            raise _no_cluster(_first_line(error)) from error
        raise JobError(
            f"The Ray cluster and this process differ: {' '.join(str(error).split())}",
            cure="Use one version of Ray and of Python on all machines.",
            slug="ray-versions",
        ) from None
    finally:
        logger.setLevel(level)


def _no_cluster(what: str) -> JobError:
    return JobError(
        f"There is no Ray cluster to use: {what}.",
        cure="Start one with `ray start --head` and give its address, or --ray alone, which starts one here.",
        slug="no-ray-cluster",
    )


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line[:300].rstrip(".")
