"""GGUF files as checkpoints: numbers by the gguf package, names and rows as transformers has them.

llama.cpp stores a matrix under a name of its own; of the Llama family it reorders the rows of q and k (its rotary
embedding pairs neighbours, transformers' pairs halves); of the Gemma family it adds one to the norms; experts of a
layer share a tensor. All of that is undone, so that a GGUF file meets a checkpoint of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.formats.decoded_source import Parts
from deltarank.checkpoints.formats.gguf_header import GgufHeader, Stored, read_gguf
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import Storage
from deltarank.checkpoints.source import Source
from deltarank.errors import CheckpointError, HeaderError

SUFFIX = ".gguf"
RAW = "GGUF "
"""Before the name of a type of ggml, in the place of a type of safetensors."""

ERRORS = {
    "Q8_0": 0.0054, "Q6_K": 0.0177, "Q5_K": 0.0361, "Q5_1": 0.0379, "Q5_0": 0.0428, "Q4_K": 0.0713, "Q4_1": 0.0783,
    "Q4_0": 0.0861, "MXFP4": 0.114, "Q2_K": 0.296,
}  # fmt: skip
"""||W - Q(W)|| / ||W|| for normally distributed weights; of types that are not here it is not stated."""

_PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F64"}

_ATTENTION = tuple(f"self_attn.{side}_proj" for side in "qkvo")
_BLOCK = (*_ATTENTION, "mlp.down_proj", "input_layernorm", "post_attention_layernorm")
_DENSE = (*_BLOCK, "mlp.gate_proj", "mlp.up_proj")
_NORMED = ("self_attn.q_norm", "self_attn.k_norm")
_AROUND = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
_SHARED = (*(f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")), "mlp.shared_expert_gate")
_EXPERTS = ("mlp.gate", *(f"mlp.experts.{part}_proj" for part in ("gate", "up", "down")))
_MIXTRAL = ("block_sparse_moe.gate", *(f"block_sparse_moe.experts.w{number}" for number in (1, 2, 3)))


@dataclass(frozen=True)
class Family:
    """What llama.cpp does to models of one architecture.

    modules      of a layer, as transformers names them
    turned       rows of q and k are reordered
    shifted      norms are stored plus one
    """

    modules: tuple[str, ...]
    turned: bool = False
    shifted: bool = False


FAMILIES = {
    "llama": Family((*_DENSE, *_MIXTRAL), turned=True),
    "qwen2": Family(_DENSE),
    "qwen3": Family((*_DENSE, *_NORMED)),
    "qwen2moe": Family((*_DENSE, *_EXPERTS, *_SHARED)),
    "qwen3moe": Family((*_DENSE, *_NORMED, *_EXPERTS)),
    "gemma": Family(_DENSE, shifted=True),
    "gemma2": Family((*_DENSE, *_AROUND), shifted=True),
    "gemma3": Family((*_DENSE, *_NORMED, *_AROUND), shifted=True),
    "phi3": Family((*_BLOCK, "self_attn.qkv_proj", "mlp.gate_up_proj")),
}
"""By `general.architecture`. Mistral and Mixtral are "llama"."""


def gguf_tensors(source: Source, file: str) -> tuple[bytes, list[TensorInfo]]:
    """The tensors of a file under llama.cpp's names, and what changes when they do.

    Raises:
        HeaderError: the header cannot be trusted.
    """
    header = read_gguf(source, file)
    found = [_info(stored, file, source.files[file]) for stored in header.tensors]
    return repr((sorted(header.about.items()), found)).encode("utf-8", "surrogatepass"), found


def _info(stored: Stored, file: str, size: int) -> TensorInfo:
    """Checked: a known type, whole blocks, all of it inside of the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(stored.kind)
        block, nbytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        return TensorInfo(stored.name, stored.shape, f"{RAW}type {stored.kind}", file, 0, 0)
    entries = math.prod(stored.shape)
    whole = entries // block * nbytes
    if stored.shape[-1] % block or stored.start + whole > size:
        raise HeaderError(
            f"{shown(file)} cannot be trusted: {shown(stored.name)} does not lie inside of the file's {size:,} bytes.",
            cure="Download or copy the file again, and compare its size with that which its publisher states.",
            slug="truncated",
        )
    word = _PLAIN.get(kind.name, RAW + kind.name)
    return TensorInfo(stored.name, stored.shape, word, file, stored.start, whole)


@dataclass
class Renamed:
    """What becomes of a GGUF file's tensors: plain ones under their right names, and those to be worked out."""

    plain: dict[str, TensorInfo] = field(default_factory=dict)
    decoders: dict[str, Blocks] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Blocks:
    """Rows of a ggml type: those from `skip` on of a stored tensor.

    heads        of a matrix whose rows were reordered by llama.cpp; 0 where they were not
    shift        what was added to every number
    """

    stored: TensorInfo
    shape: tuple[int, ...]
    storage: Storage
    skip: int = 0
    heads: int = 0
    shift: float = 0.0

    @property
    def parts(self) -> Sequence[TensorInfo]:
        return (self.stored,)

    def decode(self, parts: Parts, first: int, last: int) -> Tensor:
        if len(self.shape) < 2:
            return self._turned(self._read(parts, 0, 1)[0]).view(1, -1) - self.shift
        if not self.heads:
            return self._read(parts, first, last) - self.shift
        height = self.shape[0] // self.heads
        begin, end = first // height * height, -(-last // height) * height
        return self._turned(self._read(parts, begin, end))[first - begin : last - begin] - self.shift

    def _read(self, parts: Parts, first: int, last: int) -> Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[self.stored.dtype.removeprefix(RAW)]
        row = self.stored.nbytes * self.shape[-1] // max(self.stored.entries, 1)
        raw = parts.raw(self.stored, (self.skip + first) * row, (last - first) * row)
        found = dequantize(raw.numpy().reshape(last - first, row), kind)
        return torch.from_numpy(found).to(torch.float32).view(last - first, self.shape[-1])

    def _turned(self, rows: Tensor) -> Tensor:
        """Neighbours (2 d, 2 d + 1) of each head become its halves (d, d + height / 2)."""
        if not self.heads:
            return rows
        height = self.shape[0] // self.heads
        return rows.view(-1, height // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def renamed(tensors: Mapping[str, TensorInfo], source: Source) -> Renamed:
    """The tensors of GGUF files as transformers names and shapes them.

    Raises:
        CheckpointError: (slug "quantised-format") of an architecture whose names are not known.
    """
    headers = [read_gguf(source, file) for file in source.files if file.endswith(SUFFIX)]
    result = Renamed()
    if headers:
        about = _about(headers)
        family = _family(about)
        names = _names(str(about["general.architecture"]), family, tensors)
        for name, info in tensors.items():
            if info.file.endswith(SUFFIX):
                _rename(result, info, names.get(name, name), _Layout(family, about, name))
    return result


def _about(headers: Sequence[GgufHeader]) -> Mapping[str, Any]:
    """Of a file in parts, the first tells."""
    return {key: value for header in reversed(headers) for key, value in header.about.items()}


def _family(about: Mapping[str, Any]) -> Family:
    architecture = about.get("general.architecture")
    found = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if found is None:
        raise CheckpointError(
            f"The GGUF file is of the architecture {shown(architecture, most=40)}: how llama.cpp names and turns its "
            f"tensors is known of {', '.join(sorted(FAMILIES))} only.",
            cure="Give the checkpoint that it was made from; or load it with transformers (`from_pretrained(folder, "
            "gguf_file=...)`), which knows more of them, and `save_pretrained(folder)`.",
            slug="quantised-format",
        )
    return found


def _names(architecture: str, family: Family, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """llama.cpp's name to transformers', by the gguf package's table, which goes the other way."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    layers = [int(part) for name in tensors if name.startswith("blk.") and (part := name.split(".")[1]).isdecimal()]
    count = min(max(layers, default=-1) + 1, 10_000)
    table = get_tensor_name_map(arch, count)
    modules = ["model.embed_tokens", "model.norm", "lm_head"]
    modules += [f"model.layers.{i}.{module}" for i in range(count) for module in family.modules]
    found: dict[str, str] = {}
    for module in modules:
        stored = table.get_name(module)
        for end in (".weight", ".bias") if stored else ():
            found.setdefault(f"{stored}{end}", f"{module}{end}")
    return found


@dataclass(frozen=True)
class _Layout:
    """How one tensor was laid out."""

    family: Family
    about: Mapping[str, Any]
    stored: str

    @property
    def heads(self) -> int:
        """Of a reordered matrix."""
        key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(self.stored.split(".")[-2:][0])
        if not self.family.turned or key is None:
            return 0
        prefix = self.about["general.architecture"]
        heads = self.about.get(f"{prefix}.attention.{key}", self.about.get(f"{prefix}.attention.head_count"))
        return heads if type(heads) is int and heads > 0 else -1

    @property
    def shift(self) -> float:
        return 1.0 if self.family.shifted and self.stored.endswith("norm.weight") else 0.0


def _rename(result: Renamed, info: TensorInfo, name: str, layout: _Layout) -> None:
    result.used.add(info.name)
    heads, shift = layout.heads, layout.shift
    kind = info.dtype.removeprefix(RAW)
    # Heads that do not divide the rows (or differ by layer) leave the order of the rows unknown: it stays unread.
    if (heads and (heads < 0 or not info.shape or info.shape[0] % (2 * heads))) or kind.startswith("type "):
        obstacle = "of a type or a number of heads that is not known here"
        result.plain[name] = TensorInfo(
            name, info.shape, RAW + kind, info.file, info.start, info.nbytes, Storage(kind, obstacle=obstacle)
        )
        return
    for each, shape, skip in _pieces(name, info):
        if kind in _PLAIN and not heads and not shift:
            row = info.nbytes * shape[-1] // max(info.entries, 1)
            nbytes = row * math.prod(shape[:-1])
            result.plain[each] = TensorInfo(each, shape, kind, info.file, info.start + skip * row, nbytes)
        else:
            storage = Storage(f"GGUF {kind}", ERRORS.get(kind, 0.0))
            result.decoders[each] = Blocks(info, shape, storage, skip, heads, shift)


def _pieces(name: str, info: TensorInfo) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, first row): a tensor, or each expert of one that they share."""
    before, mark, after = name.partition(".experts.")
    if not mark or len(info.shape) != 3:
        yield name, info.shape, 0
        return
    experts, rows, columns = info.shape
    for i in range(experts):
        yield f"{before}.experts.{i}.{after}", (rows, columns), i * rows
