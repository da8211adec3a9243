"""GGUF files as checkpoints: decoded by the gguf package, with the tensor names and row order of transformers.

llama.cpp names tensors in its own way, reorders the rows of q and k of the Llama family (its rotary embedding pairs
neighbours, that of transformers pairs halves), adds one to the norms of the Gemma family, and stores the experts of a
layer in one tensor. All of that is undone, so that a GGUF file can be compared with a checkpoint of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.file_errors import refuse_file
from deltarank.checkpoints.formats.decoded_source import Decoder, PartReader
from deltarank.checkpoints.formats.decoding_plan import DecodingPlan
from deltarank.checkpoints.formats.gguf_header import GgufHeader, GgufTensor, read_gguf
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.formats.storage import StorageFormat
from deltarank.checkpoints.pieces import FLOAT_DTYPES
from deltarank.checkpoints.source import Source
from deltarank.errors import CheckpointError

GGUF_SUFFIX = ".gguf"
_PREFIX = "GGUF "
"""Before the name of a ggml type, in place of a safetensors dtype."""

ERRORS = {
    "Q8_0": 0.0054, "Q6_K": 0.0177, "Q5_K": 0.0361, "Q5_1": 0.0379, "Q5_0": 0.0428, "Q4_K": 0.0713, "Q4_1": 0.0783,
    "Q4_0": 0.0861, "MXFP4": 0.114, "Q2_K": 0.296,
}  # fmt: skip
"""||W - Q(W)|| / ||W|| of normally distributed weights. It is not stated for other types."""

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

    modules         of a layer, as transformers names them
    reorders_heads  the rows of q and k are reordered
    shifts_norms    norms are stored plus one
    """

    modules: tuple[str, ...]
    reorders_heads: bool = False
    shifts_norms: bool = False


FAMILIES = {
    "llama": Family((*_DENSE, *_MIXTRAL), reorders_heads=True),
    "qwen2": Family(_DENSE),
    "qwen3": Family((*_DENSE, *_NORMED)),
    "qwen2moe": Family((*_DENSE, *_EXPERTS, *_SHARED)),
    "qwen3moe": Family((*_DENSE, *_NORMED, *_EXPERTS)),
    "gemma": Family(_DENSE, shifts_norms=True),
    "gemma2": Family((*_DENSE, *_AROUND), shifts_norms=True),
    "gemma3": Family((*_DENSE, *_NORMED, *_AROUND), shifts_norms=True),
    "phi3": Family((*_BLOCK, "self_attn.qkv_proj", "mlp.gate_up_proj")),
}
"""By `general.architecture`. Mistral and Mixtral are "llama"."""


def gguf_tensors(source: Source, file: str) -> tuple[bytes, list[TensorInfo]]:
    """The tensors of a file under llama.cpp's names, after bytes that change when they or the metadata do.

    Raises:
        HeaderError: the header is invalid.
    """
    header = read_gguf(source, file)
    infos = [_tensor_info(tensor, file, source.files[file]) for tensor in header.tensors]
    return repr((sorted(header.metadata.items()), infos)).encode("utf-8", "surrogatepass"), infos


def _tensor_info(tensor: GgufTensor, file: str, size: int) -> TensorInfo:
    """Checked: whole blocks of a known type, inside the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        ggml_type = GGMLQuantizationType(tensor.ggml_type)
        block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    except (ValueError, KeyError):
        return TensorInfo(tensor.name, tensor.shape, f"{_PREFIX}type {tensor.ggml_type}", file, 0, 0)
    nbytes = math.prod(tensor.shape) // block * block_bytes
    if tensor.shape[-1] % block or tensor.start + nbytes > size:
        problem = f"{quoted(tensor.name)} does not lie inside the {size:,} bytes of the file"
        refuse_file(file, problem, slug="truncated")
    dtype = ggml_type.name if ggml_type.name in FLOAT_DTYPES else _PREFIX + ggml_type.name
    return TensorInfo(tensor.name, tensor.shape, dtype, file, tensor.start, nbytes)


@dataclass(frozen=True)
class GgufDecoder(Decoder):
    """Rows of a ggml type, from row `skip` of the stored tensor on.

    heads        of a matrix whose rows llama.cpp reordered; 0 if it did not
    shift        what llama.cpp added to every number
    """

    stored: TensorInfo
    shape: tuple[int, ...]
    storage: StorageFormat
    skip: int = 0
    heads: int = 0
    shift: float = 0.0

    def decode(self, parts: PartReader, first: int, last: int) -> Tensor:
        if len(self.shape) < 2:
            return self._restore_order(self._dequantize(parts, 0, 1)[0]).view(1, -1) - self.shift
        if not self.heads:
            return self._dequantize(parts, first, last) - self.shift
        height = self.shape[0] // self.heads
        begin, end = first // height * height, -(-last // height) * height
        return self._restore_order(self._dequantize(parts, begin, end))[first - begin : last - begin] - self.shift

    def _dequantize(self, parts: PartReader, first: int, last: int) -> Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        ggml_type = GGMLQuantizationType[self.stored.dtype.removeprefix(_PREFIX)]
        row_bytes = self.stored.nbytes * self.shape[-1] // max(self.stored.entries, 1)
        raw = parts.raw(self.stored, (self.skip + first) * row_bytes, (last - first) * row_bytes)
        values = dequantize(raw.numpy().reshape(last - first, row_bytes), ggml_type)
        return torch.from_numpy(values).to(torch.float32).view(last - first, self.shape[-1])

    def _restore_order(self, rows: Tensor) -> Tensor:
        """Neighbours (2 d, 2 d + 1) of each head become its halves (d, d + height / 2)."""
        if not self.heads:
            return rows
        height = self.shape[0] // self.heads
        return rows.view(-1, height // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def find_gguf(tensors: Mapping[str, TensorInfo], source: Source) -> DecodingPlan:
    """The tensors of GGUF files with the names and shapes of transformers.

    Raises:
        CheckpointError: (slug "quantised-format") the architecture is not supported.
    """
    headers = [read_gguf(source, file) for file in source.files if file.endswith(GGUF_SUFFIX)]
    plan = DecodingPlan()
    if headers:
        metadata = _merge_metadata(headers)
        family = _family(metadata)
        names = _transformers_names(str(metadata["general.architecture"]), family, tensors)
        for name, info in tensors.items():
            if info.file.endswith(GGUF_SUFFIX):
                _add(plan, info, names.get(name, name), _Layout(family, metadata, name))
    return plan


def _merge_metadata(headers: Sequence[GgufHeader]) -> Mapping[str, Any]:
    """If a checkpoint has several files, the first one wins."""
    return {key: value for header in reversed(headers) for key, value in header.metadata.items()}


def _family(metadata: Mapping[str, Any]) -> Family:
    architecture = metadata.get("general.architecture")
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        raise CheckpointError(
            f"GGUF files of the architecture {quoted(architecture, max_length=40)} are not supported; supported are "
            f"{', '.join(sorted(FAMILIES))}.",
            cure="Give the checkpoint that it was made from; or load it with transformers (`from_pretrained(folder, "
            "gguf_file=...)`), which supports more of them, and `save_pretrained(folder)`.",
            slug="quantised-format",
        )
    return family


def _transformers_names(architecture: str, family: Family, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """llama.cpp's name to transformers', by inverting the gguf package's table."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    layers = [int(part) for name in tensors if name.startswith("blk.") and (part := name.split(".")[1]).isdecimal()]
    layer_count = min(max(layers, default=-1) + 1, 10_000)
    table = get_tensor_name_map(arch, layer_count)
    modules = ["model.embed_tokens", "model.norm", "lm_head"]
    modules += [f"model.layers.{i}.{module}" for i in range(layer_count) for module in family.modules]
    names: dict[str, str] = {}
    for module in modules:
        stored = table.get_name(module)
        for end in (".weight", ".bias") if stored else ():
            names.setdefault(f"{stored}{end}", f"{module}{end}")
    return names


@dataclass(frozen=True)
class _Layout:
    """How llama.cpp changed one tensor."""

    family: Family
    metadata: Mapping[str, Any]
    stored_name: str

    @property
    def heads(self) -> int:
        """Of a matrix whose rows are reordered, -1 if their number is not known; 0 of other tensors."""
        key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(self.stored_name.split(".")[-2:][0])
        if not self.family.reorders_heads or key is None:
            return 0
        prefix = f"{self.metadata['general.architecture']}.attention"
        heads = self.metadata.get(f"{prefix}.{key}", self.metadata.get(f"{prefix}.head_count"))
        return heads if type(heads) is int and heads > 0 else -1

    @property
    def shift(self) -> float:
        return 1.0 if self.family.shifts_norms and self.stored_name.endswith("norm.weight") else 0.0


def _add(plan: DecodingPlan, info: TensorInfo, name: str, layout: _Layout) -> None:
    plan.used.add(info.name)
    heads, shift = layout.heads, layout.shift
    ggml_type = info.dtype.removeprefix(_PREFIX)
    # If heads do not divide the rows (or differ by layer), the order of the rows is not known.
    bad_heads = heads and (heads < 0 or not info.shape or info.shape[0] % (2 * heads))
    if bad_heads or ggml_type.startswith("type "):
        obstacle = f"its {'number of attention heads' if bad_heads else 'ggml type'} is not known"
        storage = StorageFormat(ggml_type, obstacle=obstacle)
        plan.plain[name] = replace(info, name=name, dtype=_PREFIX + ggml_type, storage=storage)
        return
    for part, shape, skip in _split_experts(name, info):
        if ggml_type in FLOAT_DTYPES and not heads and not shift:
            row_bytes = info.nbytes * shape[-1] // max(info.entries, 1)
            start, nbytes = info.start + skip * row_bytes, row_bytes * math.prod(shape[:-1])
            plan.plain[part] = TensorInfo(part, shape, ggml_type, info.file, start, nbytes)
        else:
            storage = StorageFormat(f"GGUF {ggml_type}", ERRORS.get(ggml_type, 0.0))
            plan.decoders[part] = GgufDecoder(info, shape, storage, skip, heads, shift)


def _split_experts(name: str, info: TensorInfo) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, first row) of a tensor, or of each expert in a tensor of experts."""
    before, separator, after = name.partition(".experts.")
    if not separator or len(info.shape) != 3:
        yield name, info.shape, 0
        return
    experts, rows, columns = info.shape
    for i in range(experts):
        yield f"{before}.experts.{i}.{after}", (rows, columns), i * rows
