"""llama.cpp's server evaluates documents of random tokens: `llama_cpp_passes.py MODEL.gguf WORK.json`."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import urllib.request
from pathlib import Path

import xllamacpp

VOCABULARY = 32000
"""Random tokens are below this, which every vocabulary has."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(model: str, work: str) -> None:
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 2048, 1, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.warmup = settings.fit_params = False
    settings.hostnames, settings.port = ["127.0.0.1"], free_port()
    server = xllamacpp.Server(settings)
    draw = random.Random(0)
    for part in json.loads(Path(work).read_text()):
        for length in part["lengths"] * part["times"]:
            prompt = [draw.randrange(1000, VOCABULARY) for _ in range(length)]
            asked = json.dumps({"prompt": prompt, "n_predict": 1, "cache_prompt": False}).encode()
            request = urllib.request.Request(
                f"{server.listening_address}/completion", asked, {"Content-Type": "application/json"}
            )
            urllib.request.urlopen(request).read()


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the server's threads do not end by themselves
