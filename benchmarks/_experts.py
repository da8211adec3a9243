"""A mixture of experts of 50,000 tensors that takes 20 MB of disk: real headers, and sparse files for the numbers.

The names, shapes and order are those of a Qwen3-MoE checkpoint as transformers saves it: for each layer four attention
matrices, a router, two norms, and for each expert `gate_proj`, `up_proj` and `down_proj`. Sparse regions read as
zeros and take no disk space, on file systems that support them (ext4, xfs, btrfs, apfs, tmpfs).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BYTES = 2  # of a number in bf16

Sized = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Experts:
    """The sizes of a checkpoint. `wrapper` is put before every name, as larger models do."""

    layers: int
    experts: int
    hidden: int = 2048
    intermediate: int = 768
    vocabulary: int = 151_936
    shards: int = 40
    wrapper: str = ""

    def shapes(self) -> Iterator[Sized]:
        at, hidden, wide = self.wrapper, self.hidden, self.intermediate
        yield f"{at}model.embed_tokens.weight", (self.vocabulary, hidden)
        for layer in range(self.layers):
            here = f"{at}model.layers.{layer}."
            for module, rows in (("q_proj", 2 * hidden), ("k_proj", hidden // 4), ("v_proj", hidden // 4)):
                yield f"{here}self_attn.{module}.weight", (rows, hidden)
            yield f"{here}self_attn.o_proj.weight", (hidden, 2 * hidden)
            yield f"{here}mlp.gate.weight", (self.experts, hidden)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"{here}{norm}.weight", (hidden,)
            for expert in range(self.experts):
                yield f"{here}mlp.experts.{expert}.gate_proj.weight", (wide, hidden)
                yield f"{here}mlp.experts.{expert}.up_proj.weight", (wide, hidden)
                yield f"{here}mlp.experts.{expert}.down_proj.weight", (hidden, wide)
        yield f"{at}model.norm.weight", (hidden,)
        yield f"{at}lm_head.weight", (self.vocabulary, hidden)


def write(folder: Path, model: Experts) -> int:
    """Writes headers, an index and a configuration; returns how many tensors there are."""
    folder.mkdir(parents=True)
    shapes = list(model.shapes())
    share = -(-len(shapes) // model.shards)
    shards = [shapes[first : first + share] for first in range(0, len(shapes), share)]
    owners: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        owners |= dict.fromkeys((name for name, _ in shard), file)
        _write_shard(folder / file, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": owners}))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", "num_hidden_layers": model.layers}))
    return len(shapes)


def _write_shard(path: Path, shard: list[Sized]) -> None:
    header, place = {}, 0
    for name, shape in shard:
        end = place + BYTES * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
