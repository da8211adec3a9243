"""An OpenAI-compatible /completions over transformers and PEFT, for `FakeEndpoint(fault=serves(...))`."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from fake_endpoint import Fault, Handler


def serves(checkpoint: Path, adapter: Path | None = None, *, lists: bool = True) -> Fault:
    """Answers as the checkpoint, with a tokenizer of GPT-2's kind, and the adapter predict in float32.

    Args:
        lists: whether log-probabilities are listed where they are asked for.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about names of transformers
            model = PeftModel.from_pretrained(model, adapter).eval()
    turn = threading.Lock()

    def answer(handler: Handler, body: dict[str, Any]) -> bool:
        ids = tokenizer(body["prompt"])["input_ids"]
        with turn:
            chosen, rows = _generate(model, ids, body)
        choice: dict[str, Any] = {"index": 0, "text": tokenizer.decode(chosen), "finish_reason": "length"}
        if lists and body.get("logprobs"):
            entries = [_listed(tokenizer, *each, int(body["logprobs"])) for each in zip(chosen, rows, strict=True)]
            choice["logprobs"] = {"content": entries}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(chosen)}
        handler.send(200, {"choices": [choice], "usage": usage})
        return True

    return answer


def _generate(model: Any, ids: list[int], body: dict[str, Any]) -> tuple[list[int], list[Tensor]]:
    """The new tokens, and all log-probabilities of each."""
    random = torch.Generator()
    random.manual_seed(int(body["seed"])) if "seed" in body else random.seed()
    chosen: list[int] = []
    rows: list[Tensor] = []
    for _ in range(int(body["max_tokens"])):
        with torch.inference_mode():
            logits = model(torch.tensor([[*ids, *chosen]])).logits[0, -1].double()
        is_greedy = body.get("temperature", 1.0) == 0
        rows.append(torch.log_softmax(logits, -1))
        drawn = logits.argmax() if is_greedy else torch.multinomial(rows[-1].exp(), 1, generator=random)
        chosen.append(int(drawn))
    return chosen, rows


def _listed(tokenizer: Any, chosen: int, row: Tensor, most: int) -> dict[str, Any]:
    best = [_entry(tokenizer, int(each), row) for each in row.argsort(descending=True)[:most]]
    return {**_entry(tokenizer, chosen, row), "top_logprobs": best}


def _entry(tokenizer: Any, number: int, row: Tensor) -> dict[str, Any]:
    piece = tokenizer.convert_ids_to_tokens(number)
    data = [_LETTERS[each] for each in piece] if all(each in _LETTERS for each in piece) else list(piece.encode())
    return {"token": tokenizer.decode([number]), "logprob": float(row[number]), "bytes": data}


def _bytes_of_letters() -> dict[str, int]:
    """The byte for each letter of a byte-level tokenizer, as the library `tokenizers` writes it."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = map(chr, [*range(0xD800), *range(0x10000, 0x110000, 0x10000)])
    found = {
        letter: byte
        for text in texts
        for letter, byte in zip(level.pre_tokenize_str(text)[0][0], text.encode(), strict=True)
    }
    # Bytes that are in no UTF-8 stand for themselves.
    return found | {chr(byte): byte for byte in range(256) if byte not in found.values()}


_LETTERS = _bytes_of_letters()
