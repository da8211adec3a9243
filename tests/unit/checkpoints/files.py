"""Checkpoints on disk for these tests: real ones by safetensors and transformers, broken ones by hand."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deltarank.checkpoints import (
    Checkpoint,
    Pair,
    Pairing,
    SummedTensor,
    open_checkpoint,
    pair_checkpoints,
    read_chunks,
)

Tensors = Mapping[str, Tensor]

BITS = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"], 8),
    **dict.fromkeys(["U16", "I16", "F16", "BF16"], 16),
    **dict.fromkeys(["U32", "I32", "F32"], 32),
    **dict.fromkeys(["U64", "I64", "F64", "C64"], 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""The types of the safetensors format."""


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def llama(*, layers: int = 2, hidden: int = 16, seed: int = 0, words: int = 40, prefix: str = "model.") -> Tensors:
    """Names and shapes of a small Llama, with a head of its own."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (words, hidden)}
    for layer in range(layers):
        at = f"{prefix}layers.{layer}."
        shapes[at + "self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[at + "self_attn.k_proj.weight"] = (hidden // 2, hidden)
        shapes[at + "mlp.down_proj.weight"] = (hidden, 3 * hidden)
        shapes[at + "input_layernorm.weight"] = (hidden,)
    shapes |= {f"{prefix}norm.weight": (hidden,), "lm_head.weight": (words, hidden)}
    return {name: numbers(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def save(folder: Path, tensors: Tensors, *, config: Mapping[str, Any] | None = None, shards: int = 1) -> Path:
    """A folder with one file, or with an index and that many shards, dealt out in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    owners = {n: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, n in enumerate(tensors)}
    for shard in sorted(set(owners.values())):
        save_file({name: tensors[name] for name in tensors if owners[name] == shard}, folder / shard)
    write_index(folder, owners)
    return folder


def write_index(folder: Path, weight_map: object, *, name: str = "model.safetensors.index.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def entry(dtype: str, shape: Sequence[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def layout(shapes: Mapping[str, tuple[str, Sequence[int]]]) -> tuple[dict[str, Any], int]:
    """A true header for these (dtype, shape), and the bytes of data that it describes."""
    header, place = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = BITS[dtype] * math.prod(shape) // 8
        header[name] = entry(dtype, shape, place, place + size)
        place += size
    return header, place


def raw(header: object, data: int | bytes = 0) -> bytes:
    """A safetensors file with this header, whatever it says; `data` are its bytes, or how many zeros."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def pairing(base: Path, finetune: Path, **globs: Sequence[str]) -> Pairing:
    """Opens, pairs and closes. The pieces cannot be read afterwards."""
    with open_checkpoint(base) as a, open_checkpoint(finetune) as b:
        return pair_checkpoints(a, b, **globs)


def read(pair: Pair | SummedTensor, *, entries: int = 50) -> tuple[Tensor, Tensor]:
    """Both sides whole, put together from chunks."""
    steps = [(a.clone(), b.clone()) for _, a, b in read_chunks(pair.base, pair.finetune, entries=entries)]
    return torch.cat([a for a, _ in steps]), torch.cat([b for _, b in steps])


def stored(checkpoint: Checkpoint, name: str) -> bytes:
    """The bytes of a tensor, decoded if it is quantised."""
    info = checkpoint.tensors[name]
    buffer = bytearray(info.nbytes)
    checkpoint.source.read_into(info.file, info.start, memoryview(buffer))
    return bytes(buffer)


class Program:
    """In a pickle, it makes a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.proof),))
