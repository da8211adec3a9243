"""vLLM's HTTP server, started with the options of a `vllm serve` command and asked for one token."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 300
SMALL = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--host", "127.0.0.1")
"""For tiny models on a processor."""

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def most_likely(python: Path, command: str, folder: Path, prompt: list[int], model: str) -> dict[int, float]:
    """The log-probabilities of the five likeliest next tokens, from a server that `command` starts in `folder`."""
    with _serving(python, command, folder) as address:
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5}
        answer = _ask(f"{address}/v1/completions", {**body, "return_tokens_as_token_ids": True})
    (found,) = answer["choices"][0]["logprobs"]["top_logprobs"]
    return {int(token.removeprefix("token_id:")): value for token, value in found.items()}


@contextmanager
def _serving(python: Path, command: str, folder: Path) -> Iterator[str]:
    """The server's address. The `vllm` command itself looks for the package `vllm`, and vllm-cpu has another name."""
    base, *options = shlex.split(command.removeprefix("vllm serve "))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", base, *options, *SMALL, "--port", port]
    with (folder / "server.log").open("wb") as log:
        environment = {**os.environ, **SETTINGS}
        # A session of its own, so that the processes that it starts end with it.
        server = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < end:
        try:
            _ask(f"{address}/v1/models")
        except urllib.error.URLError:
            time.sleep(1)
        else:
            return
    raise RuntimeError("vLLM's server does not answer; see server.log")


def _ask(address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
