"""Yardsticks: the finetune quantised in well-known formats, for comparison with the loss of a LoRA.

A yardstick quantises a weight matrix and dequantises it again, as the library that people use does. All of them
quantise the same matrices, those that a LoRA would carry. Embeddings, output head, norms, biases and routers stay as
they are. (llama.cpp's files also quantise the embedding, and hold the head in q6_K; servers that use nf4, int8 or fp8
leave both.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from deltarank.errors import UsageError
from deltarank.system import import_silently

_UNQUANTISED = re.compile(
    r"(^|\.)(embed\w*|\w*embeddings?|\w*_embed|wte|wpe|lm_head|embed_out|output_layer|\w*norm\w*|ln_\w+"
    r"|router|gate|gate_inp|shared_expert_gate|conv1d)\.(weight|bias)$|^(output|head)\.weight$"
)
_FUSED_EXPERTS = re.compile(r"experts\.\w+_proj(\.weight)?$")
_BLOCK = 32


@dataclass(frozen=True)
class Yardstick:
    """A quantisation format.

    note            what it is, and which library defines it
    fake_quantise   quantises a tensor along its last dimension and dequantises it to float32
    """

    name: str
    note: str
    fake_quantise: Callable[[Tensor], Tensor]

    def applies_to(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of this name and shape, (rows, columns) or (experts, rows, columns), is quantised."""
        is_matrix = len(shape) == 2 and name.endswith(".weight") and not _UNQUANTISED.search(name)
        is_fused = len(shape) == 3 and _FUSED_EXPERTS.search(name) is not None
        return (is_matrix or is_fused) and min(shape) > 1


def get_yardstick(name: str) -> Yardstick:
    """The yardstick of this name, ready to use.

    Raises:
        UsageError: (slug "no-such-yardstick") there is none, or (slug "yardstick-missing") its library is not
            installed.
    """
    if name not in YARDSTICKS:
        raise UsageError(
            f"Unknown yardstick {name!r}; known are {', '.join(YARDSTICKS)}.",
            cure="Choose one of these, or several separated by commas: --yardstick q8_0,q4_0.",
            slug="no-such-yardstick",
        )
    if name == "nf4":
        _import_bitsandbytes()
    return YARDSTICKS[name]


def _gguf(kind: gguf.GGMLQuantizationType) -> Callable[[Tensor], Tensor]:
    """Each block of 32 weights in a row has a scale, an incomplete last block too.

    llama.cpp would leave a matrix with incomplete blocks in float16; then hardly anything of a tiny model would be
    quantised.
    """

    def fake_quantise(weight: Tensor) -> Tensor:
        columns = weight.shape[-1]
        padded = torch.nn.functional.pad(weight.detach().to("cpu", torch.float32), (0, -columns % _BLOCK))
        quantised = gguf.quants.quantize(padded.contiguous().numpy(), kind)
        dequantised = gguf.quants.dequantize(quantised, kind)[..., :columns]
        return torch.from_numpy(np.ascontiguousarray(dequantised, np.float32)).to(weight.device)

    return fake_quantise


def _nf4(weight: Tensor) -> Tensor:
    """bitsandbytes' own kernels; each block of 64 consecutive weights has a scale (Dettmers et al. 2023).

    The matrix is passed as one long row: on a CPU, bitsandbytes 0.50 dequantises rows that are not whole blocks with
    the scales of their neighbours (an error of 0.25 instead of 0.09 at 688 columns).
    """
    functional = _import_bitsandbytes()
    row = weight.detach().float().reshape(-1).contiguous()
    quantised, state = functional.quantize_4bit(row, blocksize=64, quant_type="nf4")
    dequantised: Tensor = functional.dequantize_4bit(quantised, state)
    return dequantised.reshape(weight.shape)


def _int8(weight: Tensor) -> Tensor:
    """torchao's Int8WeightOnlyConfig: one scale per row, which maps the largest magnitude to 127.5."""
    full = weight.detach().float()
    scale = (full.abs().amax(-1, keepdim=True) / 127.5).clamp_(min=torch.finfo(torch.float32).eps)
    return (full * (1.0 / scale)).round_().clamp_(-128, 127).mul_(scale)


def _fp8(weight: Tensor) -> Tensor:
    """torchao's Float8WeightOnlyConfig: e4m3 with one scale per row, which maps the largest magnitude to 448."""
    full = weight.detach().float()
    largest = torch.finfo(torch.float8_e4m3fn).max
    scale = (full.abs().amax(-1, keepdim=True) / largest).clamp_(min=torch.finfo(torch.float32).tiny)
    return (full / scale).clamp_(-largest, largest).to(torch.float8_e4m3fn).float().mul_(scale)


def _import_bitsandbytes() -> Any:
    """Its functions, imported without its warnings about kernels that a CPU does not have."""
    try:
        return import_silently("bitsandbytes.functional")
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"The yardstick 'nf4' needs bitsandbytes, which cannot be imported: {error}.",
            cure='Run `pip install "deltarank[yardsticks]"`, or leave nf4 out.',
            slug="yardstick-missing",
        ) from error


_LEAVES = "embeddings, output head, norms, biases and routers are not quantised"

YARDSTICKS = {
    name: Yardstick(name, f"{note}; {_LEAVES}", fake_quantise)
    for name, note, fake_quantise in (
        ("q8_0", "llama.cpp's q8_0, by the gguf library", _gguf(gguf.GGMLQuantizationType.Q8_0)),
        ("q4_0", "llama.cpp's q4_0, by the gguf library", _gguf(gguf.GGMLQuantizationType.Q4_0)),
        ("nf4", "bitsandbytes' nf4 in blocks of 64", _nf4),
        ("int8", "int8 with one scale per row, as in torchao", _int8),
        ("fp8", "fp8 (e4m3) with one scale per row, as in torchao", _fp8),
    )
}
