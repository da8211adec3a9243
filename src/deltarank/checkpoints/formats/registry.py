"""All formats: how the header of a file is read, and which tensors are decoded from which stored ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.bitsandbytes import find_bitsandbytes
from deltarank.checkpoints.formats.compressed_tensors import find_compressed_tensors
from deltarank.checkpoints.formats.decoded_source import DecodedSource, PartReader
from deltarank.checkpoints.formats.decoding_plan import DecodingPlan
from deltarank.checkpoints.formats.fp8 import find_fp8
from deltarank.checkpoints.formats.gguf import GGUF_SUFFIX, find_gguf, gguf_tensors
from deltarank.checkpoints.formats.gpt_oss_experts import find_gpt_oss_experts
from deltarank.checkpoints.formats.gptq import find_gptq
from deltarank.checkpoints.formats.mlx import find_mlx
from deltarank.checkpoints.formats.quantization_config import quantization_config
from deltarank.checkpoints.formats.safetensors_header import TensorInfo, parse_header, read_header
from deltarank.checkpoints.formats.storage import StorageFormat
from deltarank.checkpoints.formats.torch_pickle import PICKLE_SUFFIXES, read_pickled
from deltarank.checkpoints.formats.transposed import find_transposed
from deltarank.checkpoints.pieces import FLOAT_DTYPES
from deltarank.checkpoints.source import Source
from deltarank.errors import CheckpointError
from deltarank.results import count

SUPPORTED_METHODS = frozenset(
    {"fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4", "bitsandbytes", "gptq", "awq", "auto-round", "modelopt"}
)
"""The `quant_method`s that are decoded."""

Tensors = Mapping[str, TensorInfo]


class FileHeader(NamedTuple):
    """The tensors that a file's header describes.

    content   bytes that change when the header does
    note      which of several sets of weights they are; None if there is only one
    """

    content: bytes
    tensors: Iterable[TensorInfo]
    note: str | None = None


def read_tensors(source: Source, file: str) -> FileHeader:
    """Reads the header of one file.

    Raises:
        CheckpointError, HeaderError: it cannot be read, or is invalid.
    """
    if file.lower().endswith(PICKLE_SUFFIXES):
        tensors, note = read_pickled(source, file)
        return FileHeader(repr(sorted(tensors.items())).encode("utf-8", "surrogatepass"), tensors.values(), note)
    if file.endswith(GGUF_SUFFIX):
        return FileHeader(*gguf_tensors(source, file))
    header = read_header(source, file)
    return FileHeader(header, parse_header(header, file=file, size=source.files[file]).values())


def decode_tensors(tensors: Tensors, source: Source, config: Mapping[str, Any]) -> tuple[Tensors, Source]:
    """The checkpoint as plain tensors: decoded ones replace the stored parts that they are made of.

    A tensor that is neither plain nor decoded stays as it is, with the reason.

    Raises:
        CheckpointError: (slug "quantised-format") its quantisation method or GGUF architecture is not supported.
    """
    quantization = quantization_config(config)
    gguf = find_gguf(tensors, source)
    tensors = {**{name: info for name, info in tensors.items() if name not in gguf.used}, **gguf.plain}
    plan = _find_quantised(tensors, quantization, PartReader(source))
    plan.decoders.update(gguf.decoders)
    if not plan.decoders:
        _refuse_unsupported(tensors, quantization.get("quant_method"))
        if not plan.refused:
            return tensors, source
    plain = {name: info for name, info in tensors.items() if name not in plan.used}
    for name, reason in plan.refused.items():
        plain[name] = replace(plain[name], storage=StorageFormat(plain[name].dtype, obstacle=reason))
    if not plan.decoders:
        return plain, source
    decoded = DecodedSource(source, plan.decoders)
    return {**plain, **decoded.tensors}, decoded


def _find_quantised(tensors: Tensors, quantization: Mapping[str, Any], parts: PartReader) -> DecodingPlan:
    """Names and dtypes decide; the configuration only adds what they do not say. Later formats win."""
    plan = find_fp8(tensors, quantization)
    plan.add(find_compressed_tensors(tensors, quantization, parts))
    plan.add(find_gptq(tensors, quantization))
    plan.add(find_bitsandbytes(tensors, parts))
    plan.add(find_gpt_oss_experts(tensors))
    plan.add(find_mlx(tensors, quantization))
    plan.add(find_transposed(tensors))
    return plan


def _refuse_unsupported(tensors: Tensors, method: object) -> None:
    """Names an unsupported method that left tensors undecoded, instead of reporting their cryptic names."""
    if not isinstance(method, str) or method in SUPPORTED_METHODS:
        return
    packed = [info for info in tensors.values() if info.dtype not in FLOAT_DTYPES and len(info.shape) > 1]
    plain = [info for info in tensors.values() if _is_plain_weight(info)]
    parts = packed or [info for info in tensors.values() if len(info.shape) > 1]
    if parts and sum(info.nbytes for info in packed) >= sum(info.nbytes for info in plain):
        raise CheckpointError(
            f"The checkpoint is quantised by {quoted(method, max_length=40)}, which is not supported "
            f"({count(len(parts), 'matrix', 'matrices')}, such as {quoted(parts[0].name)}).",
            cure="Give the unquantised checkpoint in bfloat16 or float16; or load this one with transformers, call "
            "`model.dequantize()` if its method supports that, and `save_pretrained(folder)`.",
            slug="quantised-format",
        )


def _is_plain_weight(info: TensorInfo) -> bool:
    """Whether it is the matrix of a layer as a model without quantisation has it."""
    is_in_layer = any(part.isdecimal() for part in info.name.split("."))
    return is_in_layer and info.dtype in FLOAT_DTYPES and len(info.shape) > 1 and info.name.endswith(".weight")
