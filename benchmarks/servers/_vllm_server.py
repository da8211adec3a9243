"""vLLM's HTTP server, started with the options of a `vllm serve` command and asked for one token."""

from __future__ import annotations

import json
import shlex
import urllib.request
from pathlib import Path

from vllm_server import serve_vllm


def most_likely(python: Path, command: str, folder: Path, prompt: list[int], model: str) -> dict[int, float]:
    """The log-probabilities of the five likeliest next tokens, from a server that `command` starts in `folder`."""
    words = shlex.split(command.removeprefix("vllm serve "))
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5}
    data = json.dumps({**body, "return_tokens_as_token_ids": True}).encode()
    with serve_vllm(python, [*words, "--max-model-len", "128"], folder) as address:
        request = urllib.request.Request(f"{address}/completions", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            (found,) = json.loads(answer.read())["choices"][0]["logprobs"]["top_logprobs"]
    return {int(token.removeprefix("token_id:")): value for token, value in found.items()}
