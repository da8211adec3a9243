"""Makes checkpoint pairs on disk from fixed seeds: `python benchmarks/pairs.py DATA --shape llama --layers 4`.

The recipe of every matrix, W0 in rows x columns:

    W0 = 0.02 * G0                                             G0, G standard Gaussian, all float32
    P  = U diag(0.8^0 .. 0.8^15) V'                            U, V orthonormal columns: 16 dominant directions
    D  = 0.03 ||W0|| (sqrt(0.3) P / ||P|| + sqrt(0.7) G / ||G||)
    W  = W0 + D,  both rounded to the stored dtype

A full finetune looks like this to a solver: a few dominant directions over a broad, flat bulk. The flat bulk is the
hard case for a solver that seeks the top r values: rank 64 lies in the middle of it, with no gap anywhere near.
Each tensor has a seed of its own (from its name), so a pair with more layers begins with the same layers.
One shard a layer; memory stays within two shards and three matrices in float32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from _shapes import SHAPES, Pair, Shape

BASE_STD = 0.02
RELATIVE_NORM = 0.03
DOMINANT_DIRECTIONS = 16
DOMINANT_DECAY = 0.8
DOMINANT_ENERGY = 0.3
SEED = 20260
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_NORMS = ("input_layernorm", "post_attention_layernorm")
_DTYPE_NAMES = {"bf16": "bfloat16", "fp32": "float32"}

Sized = tuple[str, tuple[int, ...]]


def make(pair: Pair) -> None:
    """Writes the pair beside its place and renames it when it is whole."""
    partial = pair.folder.with_name(pair.folder.name + ".partial")
    for old in (partial, pair.folder):
        shutil.rmtree(old, ignore_errors=True)
    folders = (partial / "base", partial / "finetune")
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config(pair), indent=1))
    _write_shards(pair, folders)
    (partial / "recipe.json").write_text(json.dumps(pair.recipe, indent=1))
    partial.rename(pair.folder)


def config(pair: Pair) -> dict[str, object]:
    """A config.json that transformers reads; nobody asks for a tokenizer."""
    shape = pair.shape
    return {
        "architectures": [_CLASSES[shape.model_type]],
        "model_type": shape.model_type,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": pair.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "dtype": _DTYPE_NAMES[pair.dtype],
    }


def shards(shape: Shape, layers: int) -> Iterator[list[Sized]]:
    """The names and shapes of each shard: one for what stands outside the layers, then one a layer."""
    words = (shape.vocabulary, shape.hidden)
    yield [("model.embed_tokens.weight", words), ("model.norm.weight", (shape.hidden,)), ("lm_head.weight", words)]
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        norms = [(f"{prefix}.{norm}.weight", (shape.hidden,)) for norm in _NORMS]
        yield [*((f"{prefix}.{module}.weight", size) for module, size in shape.matrices.items()), *norms]


def tensor_pair(name: str, size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One tensor of the base and of the finetune, by the recipe above."""
    seeded = torch.Generator().manual_seed(SEED + zlib.crc32(name.encode()))
    if len(size) == 1:
        delta = 0.01 * torch.randn(size, generator=seeded)
        return torch.ones(size, dtype=dtype), (1 + delta).to(dtype)
    base = torch.randn(size, generator=seeded).mul_(BASE_STD)
    delta = _delta(size, seeded).mul_(RELATIVE_NORM * norm(base))
    return base.to(dtype), delta.add_(base).to(dtype)


def norm(tensor: Tensor) -> float:
    """The Frobenius norm, summed in float64: torch's float32 norm loses 3 % of a matrix of the 70B shape on a CPU."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _delta(size: tuple[int, ...], seeded: torch.Generator) -> Tensor:
    """The change at norm about 1: dominant directions over a Gaussian bulk."""
    count = min(DOMINANT_DIRECTIONS, *size)
    scales = DOMINANT_DECAY ** torch.arange(count)
    left, right = (torch.linalg.qr(torch.randn(side, count, generator=seeded))[0] for side in size)
    bulk = torch.randn(size, generator=seeded)
    bulk.mul_((1 - DOMINANT_ENERGY) ** 0.5 / norm(bulk))
    return bulk.addmm_(left * (DOMINANT_ENERGY**0.5 / scales.norm() * scales), right.T)


def _write_shards(pair: Pair, folders: tuple[Path, Path]) -> None:
    weight_map: dict[str, str] = {}
    for number, sized in enumerate(shards(pair.shape, pair.layers), start=1):
        file = f"model-{number:05d}-of-{pair.layers + 1:05d}.safetensors"
        weight_map.update((name, file) for name, _ in sized)
        _write_shard(sized, [folder / file for folder in folders], DTYPES[pair.dtype])
    for folder in folders:
        total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _write_shard(sized: Iterable[Sized], paths: list[Path], dtype: torch.dtype) -> None:
    both = {name: tensor_pair(name, size, dtype) for name, size in sized}
    for side, path in enumerate(paths):
        save_file({name: tensors[side] for name, tensors in both.items()}, path, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds the pairs")
    parser.add_argument("--shape", choices=SHAPES, default="llama")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    options = parser.parse_args()
    pair = Pair.at(options.data, options.shape, options.layers, options.dtype)
    if not pair.is_made:
        make(pair)
    print(pair.folder)


if __name__ == "__main__":
    main()
