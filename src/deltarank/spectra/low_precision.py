"""What a device computes faster in low precision: enough to find directions, never to measure with."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32: on GPUs, and on CPUs with instructions for it."""
    if device.type == "cuda":
        return True
    return device.type == "cpu" and _supports("_is_avx512_bf16_supported") and _has_mkldnn()


def has_fast_int8(device: torch.device) -> bool:
    """Whether products of int8 matrices are faster still: on CPUs with instructions for it.

    torch has no public function for them. The results of its private one are checked before it is used.
    """
    return device.type == "cpu" and _supports("_is_vnni_supported") and _has_mkldnn() and _computes_int8_products()


def int8_product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """left @ right in int32, exact if no sum exceeds 2^31: up to 133,000 products of numbers up to 127."""
    product: Tensor = torch._int_mm(left, right) if out is None else torch._int_mm(left, right, out=out)
    return product


def _supports(function: str) -> bool:
    """The result of a private function of torch about the processor; False if torch has no such function."""
    try:
        return bool(getattr(torch.cpu, function)())
    except AttributeError:
        return False


def _has_mkldnn() -> bool:
    is_available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_available


@cache
def _computes_int8_products() -> bool:
    matrix = torch.arange(-127, 129, dtype=torch.int16).clamp_(max=127).to(torch.int8).view(16, 16)
    try:
        return all(
            torch.equal(int8_product(left, right).long(), left.long() @ right.long())
            for left, right in ((matrix, matrix), (matrix, matrix.T), (matrix.T, matrix))
        )
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
