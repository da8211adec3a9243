"""A small OpenAI-compatible server over plain distributions, with the faults and the lies that hosts have.

Its "model" gives a word of a small vocabulary a logit that a hash of the last words decides. A finetune adds noise to
the logits; `kld` between two of them is known exactly.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

WORDS = 64
_CONTEXT = 2

Probabilities = np.ndarray


@dataclass
class TinyModel:
    """Logits of N(0, sharpness^2) by the last two words, with noise of N(0, change^2) added by a finetune."""

    change: float = 0.0
    sharpness: float = 2.0
    seed: int = 0

    def log_probabilities(self, words: list[str]) -> Probabilities:
        """Of the next word, (WORDS,)."""
        context = " ".join(words[-_CONTEXT:])
        logits = self.sharpness * _noise(f"base:{context}") + self.change * _noise(f"{self.seed}:{context}")
        return logits - np.log(np.exp(logits).sum())

    def kld(self, other: TinyModel, prompts: int = 2000) -> float:
        """KL(self || other) of the next word, in nats, averaged over contexts."""
        rows = [(self.log_probabilities([str(i)]), other.log_probabilities([str(i)])) for i in range(prompts)]
        return float(np.mean([(np.exp(p) * (p - q)).sum() for p, q in rows]))


def _noise(name: str) -> Probabilities:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(number).standard_normal(WORDS)


def word(number: int) -> str:
    return f" w{number}"


Fault = Callable[["Handler", dict[str, Any]], bool]
"""Answers a request itself and returns True, or returns False."""


@dataclass
class FakeEndpoint:
    """What the server does; tests set the fields before they start it.

    jitter           noise on the logits that differs from request to request
    rounding         noise on the logits that is the server's own, as other kernels make
    top_logprobs     the most that it lists
    system_prompt    words before each prompt that nobody sees
    opening          words that begin every answer, with certainty
    nameless         words that it lists with an empty text, as vLLM lists parts of a character
    written_by       the model whose tokens it returns beside the lists of `model`
    secret_top_p     cuts the distribution whatever is asked for
    secret_temperature   multiplies the one that was asked for
    counts_bytes     it counts a token for each byte of a prompt
    counts_at_least  tokens that it counts for each answer, however few were asked for
    fault            a failure
    """

    model: TinyModel = field(default_factory=TinyModel)
    written_by: TinyModel | None = None
    secret_temperature: float = 1.0
    name: str = "tiny"
    key: str | None = None
    apis: tuple[str, ...] = ("completions", "chat")
    top_logprobs: int = 20
    echoes: bool = False
    prompt_logprobs: bool = False
    counts_tokens: bool = True
    counts_bytes: bool = False
    counts_at_least: int = 0
    jitter: float = 0.0
    rounding: float = 0.0
    system_prompt: tuple[str, ...] = ()
    opening: tuple[int, ...] = ()
    nameless: range = range(0)
    secret_top_p: float = 1.0
    temperature_ignored: bool = False
    same_logprobs: bool = False
    tokenizer_step: int = 1000
    reasons: bool = False
    empty: bool = False
    text: str | None = None
    fault: Fault | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.url}"

    def log_probabilities(self, words: list[str], temperature: float, top_p: float) -> Probabilities:
        found = self.model.log_probabilities(words)
        if self.rounding:
            found = found + self.rounding * _noise(f"rounding:{self.url}:{' '.join(words[-_CONTEXT:])}")
        if self.jitter:
            found = found + self.jitter * np.random.default_rng().standard_normal(WORDS)
        found = found - np.log(np.exp(found).sum())
        if self.same_logprobs:
            return found
        return _cut(found, min(top_p, self.secret_top_p))


def _cut(log_probabilities: Probabilities, top_p: float) -> Probabilities:
    if top_p >= 1:
        return log_probabilities
    order = np.argsort(-log_probabilities)
    mass = np.cumsum(np.exp(log_probabilities[order]))
    kept = order[: int(np.searchsorted(mass, top_p)) + 1]
    cut = np.full(WORDS, -math.inf)
    cut[kept] = log_probabilities[kept]
    return cut - np.log(np.exp(cut).sum())


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        endpoint: FakeEndpoint = self.server.endpoint
        with endpoint.lock:
            endpoint.at_once += 1
            endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
        try:
            self._answer(endpoint)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with endpoint.lock:
                endpoint.at_once -= 1

    def _answer(self, endpoint: FakeEndpoint) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.requests.append(body)
        if endpoint.fault is not None and endpoint.fault(self, body):
            return
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if endpoint.key is not None and given != endpoint.key:
            self.send(401, {"error": {"message": f"Incorrect API key provided: {given}", "code": "invalid_api_key"}})
            return
        api = "chat" if self.path.endswith("/chat/completions") else "completions"
        if api not in endpoint.apis or not self.path.startswith("/v1/"):
            self.send(404, {"error": {"message": "Not Found"}})
        elif body.get("model") != endpoint.name:
            self.send(404, {"error": {"message": f"The model {body.get('model')} does not exist", "code": "404"}})
        elif _listed(body, api) > endpoint.top_logprobs:
            self.send(400, {"error": {"message": f"logprobs is limited to {endpoint.top_logprobs}"}})
        else:
            self.send(200, answer(endpoint, body, api))

    def send(self, status: int, payload: Any, *, headers: dict[str, str] | None = None) -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self._headers_buffer.append(b"\r\n" + data)  # type: ignore[attr-defined]  # in one packet
        self.flush_headers()


def _listed(body: dict[str, Any], api: str) -> int:
    return int(body.get("top_logprobs") or 0) if api == "chat" else int(body.get("logprobs") or 0)


def answer(endpoint: FakeEndpoint, body: dict[str, Any], api: str) -> dict[str, Any]:
    """The whole payload."""
    prompt = body["messages"][-1]["content"] if api == "chat" else body["prompt"]
    words = [*endpoint.system_prompt, *prompt.split()]
    seed = body.get("seed")
    choices = []
    for number in range(int(body.get("n", 1))):
        rng = random.Random(f"{seed}:{number}") if seed is not None else random.Random()
        choices.append(_choice(endpoint, body, api, words, prompt, rng))
    payload: dict[str, Any] = {"id": "x", "object": "completion", "model": endpoint.name, "choices": choices}
    if endpoint.counts_tokens:
        pieces = len(words) + len(prompt) // endpoint.tokenizer_step
        counted = len(prompt.encode()) if endpoint.counts_bytes else pieces
        answers = len(choices) * max(int(body["max_tokens"]), endpoint.counts_at_least)
        payload["usage"] = {"prompt_tokens": counted, "completion_tokens": answers}
    return payload


def _choice(
    endpoint: FakeEndpoint, body: dict[str, Any], api: str, words: list[str], prompt: str, rng: random.Random
) -> dict[str, Any]:
    listed, generated, positions = _listed(body, api), list(words), []
    temperature = 1.0 if endpoint.temperature_ignored else float(body.get("temperature", 1.0))
    for place in range(int(body["max_tokens"])):
        found = endpoint.log_probabilities(generated, temperature, float(body.get("top_p", 1.0)))
        if place < len(endpoint.opening):
            found = found.copy()
            found[endpoint.opening[place]] += 50
            found -= np.log(np.exp(found).sum())
        if temperature == 0:
            chosen = int(np.argmax(found))
        else:
            said = endpoint.written_by.log_probabilities(generated) if endpoint.written_by else found
            chosen = rng.choices(range(WORDS), weights=list(np.exp(said / endpoint.secret_temperature)))[0]
        shown = _noise("always") if endpoint.same_logprobs else found
        shown = shown - np.log(np.exp(shown).sum())
        positions.append((word(chosen), shown[chosen], _top(shown, listed, endpoint.nameless)))
        generated.append(word(chosen).strip())
    text = "".join(each[0] for each in positions)
    if endpoint.text is not None:
        text = endpoint.text
    if endpoint.empty:
        text, positions = "", []
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    if api == "chat":
        choice["message"] = {"role": "assistant", "content": "" if endpoint.reasons else text}
        if endpoint.reasons:
            choice["message"]["reasoning_content"] = text
        if listed and positions:
            choice["logprobs"] = {"content": [_chat_entry(*each) for each in positions]}
        return choice
    choice["text"] = prompt + text if body.get("echo") and endpoint.echoes else text
    if listed and positions:
        before = _prompt_positions(endpoint, words, listed) if body.get("echo") and endpoint.echoes else []
        shown_positions = [*before, *positions]
        choice["logprobs"] = {
            "tokens": [each[0] for each in shown_positions],
            "token_logprobs": [each[1] for each in shown_positions],
            "top_logprobs": [each[2] for each in shown_positions],
        }
    if body.get("prompt_logprobs") and endpoint.prompt_logprobs:
        known = _prompt_positions(endpoint, words, int(body["prompt_logprobs"]))
        choice["prompt_logprobs"] = [
            {token: {"logprob": value} for token, value in (each[2] or {}).items()} or None for each in known
        ]
    return choice


def _prompt_positions(endpoint: FakeEndpoint, words: list[str], listed: int) -> list[Any]:
    """Real words have no probability here: each position lists what the model would have said instead."""
    found: list[Any] = [(words[0], None, None)]
    for i in range(1, len(words)):
        row = endpoint.log_probabilities(words[:i], 1.0, 1.0)
        found.append((words[i], -20.0, _top(row, listed, endpoint.nameless)))
    return found


def _top(log_probabilities: Probabilities, listed: int, nameless: range) -> dict[str, float]:
    order = [int(i) for i in np.argsort(-log_probabilities)[:listed] if math.isfinite(log_probabilities[i])]
    return {"" if i in nameless else word(i): float(log_probabilities[i]) for i in order}


def _chat_entry(token: str, value: float, top: dict[str, float]) -> dict[str, Any]:
    alternatives = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in top.items()]
    return {"token": token, "logprob": float(value), "bytes": list(token.encode()), "top_logprobs": alternatives}


@contextmanager
def serving(*endpoints: FakeEndpoint) -> Iterator[tuple[FakeEndpoint, ...]]:
    """The endpoints on ports of this machine."""
    servers = []
    for endpoint in endpoints:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.endpoint = endpoint  # type: ignore[attr-defined]
        endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
    try:
        yield endpoints
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def stream_forever(handler: Handler, body: dict[str, Any]) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 1000)
        time.sleep(0.01)
