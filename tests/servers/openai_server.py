"""llama.cpp's OpenAI-compatible server, in a process of its own: some inputs make llama.cpp abort."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODEL = "tiny"


@contextmanager
def serve_gguf(model: Path, log: Path, adapter: Path | None = None) -> Iterator[str]:
    """Serves a GGUF model, perhaps with a GGUF adapter; yields its address, as far as /v1."""
    words = [sys.executable, __file__, str(model), *([str(adapter)] if adapter else [])]
    with (
        log.open("w") as errors,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdin
        assert process.stdout
        try:
            address = next((line for line in process.stdout if line.startswith("@")), None)
            assert address, log.read_text()[-2000:]
            yield f"{address[1:].strip()}/v1"
        finally:
            process.kill()


def main() -> None:
    import xllamacpp

    settings = _settings(xllamacpp)
    server = xllamacpp.Server(settings)
    print(f"@{server.listening_address}", flush=True)
    sys.stdin.read()


def _settings(xllamacpp: Any) -> Any:
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.model_alias = sys.argv[1], {MODEL}
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 2048, 2, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.warmup = settings.fit_params = False
    settings.hostnames, settings.port = ["127.0.0.1"], _free_port()
    if sys.argv[2:]:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(sys.argv[2], 1.0)]
    return settings


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
