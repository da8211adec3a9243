"""The finetune quantised as people serve it, to measure the loss of a LoRA by: a known evil as a unit.

Each rounds a weight matrix and reads it back, as the library that people use does. All five round the same matrices,
those that a LoRA would carry, and leave the rest as it is: embeddings, output head, norms, biases, routers.
(llama.cpp's files also round the embedding, and hold the head in q6_K; servers with nf4, int8 and fp8 leave both.)
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

_LEFT_ALONE = re.compile(
    r"(^|\.)(embed\w*|\w*embeddings?|\w*_embed|wte|wpe|lm_head|embed_out|output_layer|\w*norm\w*|ln_\w+"
    r"|router|gate|gate_inp|shared_expert_gate|conv1d)\.(weight|bias)$|^(output|head)\.weight$"
)
_FUSED_EXPERTS = re.compile(r"experts\.\w+_proj(\.weight)?$")


_BLOCK = 32


@dataclass(frozen=True)
class Yardstick:
    """A way to store weights.

    bits      a weight, scales included, for long rows
    note      what it is, and by whom
    """

    name: str
    bits: float
    note: str
    round: Callable[[Tensor], Tensor]

    def applies(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of this name and shape, (rows, columns) or (experts, rows, columns), is rounded."""
        is_matrix = len(shape) == 2 and name.endswith(".weight") and not _LEFT_ALONE.search(name)
        is_fused = len(shape) == 3 and _FUSED_EXPERTS.search(name) is not None
        return (is_matrix or is_fused) and min(shape) > 1


def yardstick(name: str) -> Yardstick:
    """The yardstick of this name, ready to use.

    Raises:
        UsageError: there is none, or its library is not installed.
    """
    if name not in YARDSTICKS:
        raise UsageError(
            f"there is no yardstick {name!r}; there are {', '.join(YARDSTICKS)}.",
            cure="Give --yardstick one of these, or several, as in q8_0,q4_0.",
            slug="no-such-yardstick",
        )
    if name == "nf4":
        _bitsandbytes()
    return YARDSTICKS[name]


def _gguf(kind: gguf.GGMLQuantizationType) -> Callable[[Tensor], Tensor]:
    """Blocks of 32 along the rows share a scale; a last one that is not full has its own.

    llama.cpp would leave a matrix with such rows in float16. Then a tiny model's yardstick would hardly round anything.
    """

    def rounded(weight: Tensor) -> Tensor:
        numbers = weight.detach().to("cpu", torch.float32)
        whole = torch.nn.functional.pad(numbers, (0, -numbers.shape[-1] % _BLOCK)).contiguous().numpy()
        read = gguf.quants.dequantize(gguf.quants.quantize(whole, kind), kind)[..., : numbers.shape[-1]]
        return torch.from_numpy(np.ascontiguousarray(read, np.float32)).to(weight.device)

    return rounded


def _nf4(weight: Tensor) -> Tensor:
    """bitsandbytes' own kernels; runs of 64 entries, row after row, share a scale (Dettmers and others 2023).

    It is given one long row: on a CPU, version 0.50 reads rows of another length than whole blocks back with their
    neighbours' scales (an error of 0.25 instead of 0.09 at 688 columns).
    """
    functional = _bitsandbytes()
    whole = weight.detach().float().reshape(-1).contiguous()
    packed, state = functional.quantize_4bit(whole, blocksize=64, quant_type="nf4")
    read: Tensor = functional.dequantize_4bit(packed, state)
    return read.reshape(weight.shape)


def _int8(weight: Tensor) -> Tensor:
    """torchao's Int8WeightOnlyConfig, a scale a row: the largest magnitude lies at 127.5."""
    whole = weight.detach().float()
    scale = (whole.abs().amax(-1, keepdim=True) / 127.5).clamp_(min=torch.finfo(torch.float32).eps)
    return (whole * (1.0 / scale)).round_().clamp_(-128, 127).mul_(scale)


def _fp8(weight: Tensor) -> Tensor:
    """torchao's Float8WeightOnlyConfig, e4m3 with a scale a row: the largest magnitude lies at 448."""
    whole = weight.detach().float()
    largest = torch.finfo(torch.float8_e4m3fn).max
    scale = (whole.abs().amax(-1, keepdim=True) / largest).clamp_(min=torch.finfo(torch.float32).tiny)
    return (whole / scale).clamp_(-largest, largest).to(torch.float8_e4m3fn).float().mul_(scale)


def _bitsandbytes() -> Any:
    """Its functions; its remarks about kernels that it would like to have on a CPU are not the user's business."""
    try:
        return import_silently("bitsandbytes.functional")
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"the yardstick 'nf4' needs bitsandbytes, which cannot be loaded: {error}.",
            cure='pip install "deltarank[yardsticks]", or leave nf4 out.',
            slug="yardstick-missing",
        ) from error


_LEAVES = "embeddings, output head, norms, biases and routers left as they are"

YARDSTICKS: dict[str, Yardstick] = {
    each.name: each
    for each in (
        Yardstick("q8_0", 8.5, f"llama.cpp's q8_0, by gguf; {_LEAVES}", _gguf(gguf.GGMLQuantizationType.Q8_0)),
        Yardstick("q4_0", 4.5, f"llama.cpp's q4_0, by gguf; {_LEAVES}", _gguf(gguf.GGMLQuantizationType.Q4_0)),
        Yardstick("nf4", 4.5, f"bitsandbytes' nf4 in blocks of 64; {_LEAVES}", _nf4),
        Yardstick("int8", 8.0, f"int8 with a scale a row, as torchao rounds; {_LEAVES}", _int8),
        Yardstick("fp8", 8.0, f"fp8 (e4m3) with a scale a row, as torchao rounds; {_LEAVES}", _fp8),
    )
}
