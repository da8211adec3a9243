"""Bases with finetunes of all kinds, and the numbers of a run."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_checkpoints import HIDDEN, LAYERS, base_weights, full_finetune, merged_lora, write

NOT_OF_THE_NUMBERS = ("seconds", "command", "threads")


def write_models(home: Path) -> Path:
    """A base, and finetunes of all kinds in `ft`."""
    base = base_weights()
    broken = dict(full_finetune(base))
    broken["model.layers.0.mlp.up_proj.weight"] = torch.full((48, 32), float("nan"))
    write(home / "base", base)
    write(home / "other", {"some.weight": torch.ones(8, 8)})
    made: dict[str, Mapping[str, torch.Tensor]] = {
        "copy": dict(base),
        "full": full_finetune(base),
        "lora": merged_lora(base, 3),
        "nan": broken,
        "second": full_finetune(base, seed=5),
        "unrelated": base_weights(seed=77),
    }
    for name, weights in made.items():
        write(home / "ft" / name, weights)
    write(home / "ft" / "wide", full_finetune(base, seed=6), dtype=torch.float32)
    return home


def write_adapter(folder: Path, *, rank: int) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(9)
    factors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{side}.weight": 0.1
        * torch.randn(shape, generator=generator)
        for layer in range(LAYERS)
        for side, shape in (("A", (rank, HIDDEN)), ("B", (HIDDEN, rank)))
    }
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def write_larger(home: Path) -> Path:
    """Matrices each too large to be measured with others at once, in four files a model."""
    generator = torch.Generator().manual_seed(5)
    names = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(5) for part in ("up", "down")]
    base = {name: 0.02 * torch.randn(288, 300, generator=generator) for name in names}
    base |= {
        "model.embed_tokens.weight": torch.randn(500, 288, generator=generator),
        "model.norm.weight": torch.ones(288),
    }
    for number, folder in enumerate(["base", "ft/a", "ft/b", "ft/c"]):
        weights = full_finetune(base, seed=number) if number else base
        write_shards(home / folder, weights)
    return home


def write_shards(folder: Path, weights: Mapping[str, torch.Tensor], files: int = 4) -> None:
    folder.mkdir(parents=True)
    owner = {name: f"model-{i % files + 1:05}-of-{files:05}.safetensors" for i, name in enumerate(weights)}
    for file in set(owner.values()):
        save_file({name: w.bfloat16() for name, w in weights.items() if owner[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": owner}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def numbers(path: Path) -> dict[str, Any]:
    """results.json without its times, its command and its threads."""
    stored = json.loads((path / "results.json").read_text(encoding="utf-8"))
    del stored["created"]
    for each in (stored["settings"], *stored["matrices"]):
        for name in NOT_OF_THE_NUMBERS:
            each.pop(name, None)
    return stored


def lines_in(fleet: Path) -> int:
    """Results of tensors; a matrix has a line with its sketch, too."""
    lines = (line for path in fleet.glob("*/matrices.jsonl") for line in path.read_bytes().splitlines(keepends=True))
    return sum(line.endswith(b"\n") and not line.startswith(b'{"sketch_of"') for line in lines)
