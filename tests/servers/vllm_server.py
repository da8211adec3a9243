"""vLLM's OpenAI-compatible server, in an environment of its own: see benchmarks/servers/vllm.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PYTHON_VARIABLE = "DELTARANK_TEST_VLLM"
"""Names the interpreter of an environment with vLLM."""

PATIENCE = 300
ON_A_PROCESSOR = ("--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1")

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@contextmanager
def serve_vllm(python: Path, words: Sequence[str | Path], folder: Path, log: str = "server.log") -> Iterator[str]:
    """Starts `vllm serve` with these words in `folder`, and yields the server's address, as far as /v1.

    The command `vllm` itself looks for the package `vllm`, and vllm-cpu has another name.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    started = [python, *module, *words, *ON_A_PROCESSOR, "--port", port]
    with (folder / log).open("wb") as file:
        environment = {**os.environ, **SETTINGS}
        # A session of its own, so that the processes that it starts end with it.
        server = subprocess.Popen(
            started, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}/v1/models", server, folder / log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=60).close()
        except urllib.error.URLError:
            time.sleep(1)
        else:
            return
    raise RuntimeError(f"vLLM's server does not answer: {log.read_text(errors='replace')[-2000:]}")
