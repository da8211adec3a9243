"""The LoRA slots that the real vLLM allocates, in bytes, beside what deltarank computes from the base's shapes.

It needs the environment of vllm.py. The models are those of tests/servers/model_zoo.py and _multimodal.py:

    python benchmarks/servers/vllm_slots.py --python VENV/bin/python    # 15 min; 1.7 GB

Each model is loaded with `enable_lora`, `max_loras` and `max_lora_rank`, and the storages of all `lora_a_stacked` and
`lora_b_stacked` are added up. vLLM's build for processors cannot run experts: for these its own `create_lora_weights`
functions allocate the tensors of one layer. Exit status 1 if a number differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "servers"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from _multimodal import write_multimodal  # noqa: E402
from _vllm_worker import SETTINGS as ENVIRONMENT  # noqa: E402
from model_zoo import ZOO, ZooModel, tokenizer, write_family  # noqa: E402

import _report  # noqa: E402
from deltarank.checkpoints import open_checkpoint  # noqa: E402
from deltarank.servers import slot_bytes, slot_numbers  # noqa: E402

MODELS = ("llama", "llama of 521 tokens", "qwen2", "qwen3", "mistral", "gemma3", "phi3")
TIED = ("llama", "qwen3")
ON_TWO_GPUS = {"llama": {}, "llama with one head of keys": {"num_key_value_heads": 1}, "qwen3": {}}
"""Models whose slots are counted with tensor parallel size 2, and what is changed of their configurations."""

WITH_IMAGES = ("llava", "gemma3")
SETTINGS = ((2, 8), (3, 64))
"""Slots and rank."""

EXPERTS = {"experts": 8, "hidden": 96, "inner": 160}


@dataclass(frozen=True)
class Row:
    name: str
    slots: int
    rank: int
    computed: int
    found: Mapping[str, int]

    @property
    def allocated(self) -> int:
        return sum(self.found.values())

    @property
    def cells(self) -> tuple[str, ...]:
        shown = (f"{number:,}" for number in (self.slots, self.rank, self.computed, self.allocated))
        return (self.name, *shown, "yes" if self.computed == self.allocated else "no")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="of vLLM's environment")
    parser.add_argument("--torchvision", type=Path, help="a folder with torchvision, for models that read images")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in [*experts(options.python), *models(options, Path(folder))]:
            print(row.cells, dict(row.found), file=sys.stderr, flush=True)
            rows.append(row)
    heads = ("model", "slots", "rank", "bytes by the formula", "bytes allocated by vLLM", "equal")
    print(_report.table(heads, [row.cells for row in rows]))
    return 0 if rows and all(row.computed == row.allocated for row in rows) else 1


def models(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    for name in MODELS:
        yield from of_base(options.python, name, write_family(name, folder / name).base)
    for name in TIED:
        base = write_changed(name, folder / f"{name} tied", {"tie_word_embeddings": True})
        yield from of_base(options.python, f"{name}, tied head", base)
    for name, changes in ON_TWO_GPUS.items():
        base = write_changed(name.split()[0], folder / f"{name} on two", changes)
        yield from of_base(options.python, f"{name}, each of two GPUs", base, gpus=2)
    for name in WITH_IMAGES if options.torchvision else ():
        base = write_multimodal(name, folder / f"{name} with images").base
        yield from of_base(options.python, f"{name} with images", base, path=options.torchvision)


def write_changed(name: str, folder: Path, changes: Mapping[str, Any]) -> Path:
    """A base of the zoo with another configuration."""
    model = ZooModel(ZOO[name].model_type, {**ZOO[name].config, **changes}).make()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def of_base(python: Path, name: str, base: Path, path: Path | None = None, gpus: int = 1) -> Iterator[Row]:
    with open_checkpoint(base) as checkpoint:
        shapes = {key: info.shape for key, info in checkpoint.tensors.items()}
        numbers = slot_numbers(shapes, checkpoint.config, gpus=gpus)
    limits = {"options": {"limit_mm_per_prompt": {"image": 0, "video": 0}}} if path else {}
    for slots, rank in SETTINGS:
        found = ask(python, {"model": str(base), "slots": slots, "rank": rank, "gpus": gpus, **limits}, path)
        yield Row(name, slots, rank, slot_bytes(numbers, rank, slots), found)


def experts(python: Path) -> Iterator[Row]:
    """One layer of experts, in the layout of most models and in that of gpt-oss."""
    count, hidden, inner = EXPERTS.values()
    each = {f"x.experts.{i}.{part}.weight": (inner, hidden) for i in range(count) for part in ("gate_proj", "up_proj")}
    each |= {f"x.experts.{i}.down_proj.weight": (hidden, inner) for i in range(count)}
    fused = {"x.experts.gate_up_proj": (count, hidden, 2 * inner), "x.experts.down_proj": (count, inner, hidden)}
    config: dict[str, Any] = {"hidden_size": hidden}
    cases: list[tuple[str, Mapping[str, tuple[int, ...]], dict[str, Any], bool]] = [
        ("experts, a matrix each", each, config, False),
        ("experts, gate and up in one tensor", fused, config, False),
        ("experts of gpt-oss", fused, {**config, "model_type": "gpt_oss"}, True),
    ]
    for name, shapes, settings, one_pair in cases:
        for slots, rank in SETTINGS:
            found = ask(python, {**EXPERTS, "fused": one_pair, "slots": slots, "rank": rank, "gpus": 1})
            yield Row(name, slots, rank, slot_bytes(slot_numbers(shapes, settings), rank, slots), found)


def ask(python: Path, task: Mapping[str, Any], path: Path | None = None) -> dict[str, int]:
    worker = Path(__file__).with_name("_vllm_slots_worker.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.json"
        file.write_text(json.dumps(task))
        paths = [worker.with_name("_torchvision"), path] if path else []
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        if task["gpus"] > 1:  # a process for each, on a core of its own
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, range(task["gpus"])))
        done = subprocess.run([python, "-P", worker, file], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"found"')]
    if not lines:
        raise RuntimeError(f"vLLM allocated nothing: {done.stderr[-3000:]}")
    found: dict[str, int] = json.loads(lines[-1])["found"]
    return found


if __name__ == "__main__":
    sys.exit(main())
