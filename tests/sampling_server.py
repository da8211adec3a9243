"""An endpoint that samples from a transformers model, with the settings and the lies of hosts."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fake_endpoint import Handler


@dataclass
class SamplingServer:
    """A fault for `FakeEndpoint`: it answers every request of /completions, equal ones with equal samples.

    top_logprobs   the most that it lists
    temperature    applied to what is asked for; `top_k` cuts off, whatever is asked for
    listed_at      the temperature of what it lists
    lists          the model whose probabilities it lists, if not its own
    refuses        parameters that it refuses
    before         text before each prompt that nobody sees
    counts         whether it counts tokens; `count_more`: by how much too many, for each character of a prompt
    """

    model: PreTrainedModel
    tokenizer: Any
    top_logprobs: int = 20
    temperature: float = 1.0
    top_k: int = 0
    listed_at: float = 1.0
    lists: PreTrainedModel | None = None
    refuses: tuple[str, ...] = ()
    before: str = ""
    empty: bool = False
    counts: bool = True
    count_more: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, tokenizer: Path, **settings: Any) -> SamplingServer:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(tokenizer), **settings)

    def __call__(self, handler: Handler, body: dict[str, Any]) -> bool:
        self.bodies.append(body)
        refused = [name for name in self.refuses if name in body]
        if int(body.get("logprobs") or 0) > self.top_logprobs or refused or "messages" in body:
            handler.send(400, {"error": {"message": f"not supported: {refused}"}})
            return True
        ids = self.tokenizer(self.before + body["prompt"], verbose=False)["input_ids"]
        choices = [self._choice(ids, body, number) for number in range(int(body.get("n", 1)))]
        payload: dict[str, Any] = {"model": "tiny", "choices": [each for each, _ in choices]}
        if self.counts:
            counted = len(ids) + int(self.count_more * len(body["prompt"]))
            payload["usage"] = {"prompt_tokens": counted, "completion_tokens": sum(each for _, each in choices)}
        handler.send(200, payload)
        return True

    @torch.inference_mode()
    def _choice(self, ids: list[int], body: dict[str, Any], number: int) -> tuple[dict[str, Any], int]:
        named = json.dumps([number, body], sort_keys=True).encode()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(named).digest()[:6], "big"))
        temperature = float(body.get("temperature", 1.0)) * self.temperature
        found: list[int] = []
        content: list[dict[str, Any]] = []
        for _ in range(0 if self.empty else int(body["max_tokens"])):
            logits = self.model(torch.tensor([[*ids, *found]]), use_cache=False, logits_to_keep=1).logits
            row = torch.log_softmax(logits[0, -1].double(), -1)
            chosen = self._sample(row, temperature, float(body.get("top_p", 1.0)), generator)
            if chosen == self.tokenizer.eos_token_id:
                break
            found.append(chosen)
            content.append(self._entry(chosen, self._listed(row, [*ids, *found[:-1]]), int(body.get("logprobs") or 0)))
        text = self.tokenizer.decode(found)
        finish = "length" if len(found) == int(body["max_tokens"]) else "stop"
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": content}
        return choice, len(found)

    def _listed(self, row: torch.Tensor, before: list[int]) -> torch.Tensor:
        if self.lists is not None:
            row = self.lists(torch.tensor([before]), use_cache=False, logits_to_keep=1).logits[0, -1].double()
        return torch.log_softmax(row / self.listed_at, -1)

    def _sample(self, row: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
        if temperature == 0 or top_p < 0.01:
            return int(row.argmax())
        scaled = row / temperature
        if self.top_k:
            scaled[scaled < scaled.topk(self.top_k).values[-1]] = -math.inf
        return int(torch.multinomial(torch.softmax(scaled, -1), 1, generator=generator))

    def _entry(self, chosen: int, row: torch.Tensor, listed: int) -> dict[str, Any]:
        best = [int(each) for each in row.argsort(descending=True)[:listed]]
        return {**self._token(chosen, row), "top_logprobs": [self._token(each, row) for each in best]}

    def _token(self, number: int, row: torch.Tensor) -> dict[str, Any]:
        return {"id": number, "token": self.tokenizer.decode([number]), "logprob": float(row[number])}
