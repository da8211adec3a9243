"""What a device does faster in few bits: enough to find directions by, never to measure with."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32: on GPUs, and on CPUs that have instructions for it."""
    if device.type == "cuda":
        return True
    return device.type == "cpu" and _can("_is_avx512_bf16_supported") and _has_kernels()


def has_fast_int8(device: torch.device) -> bool:
    """Whether products of whole numbers of 8 bits are faster still: on CPUs that have instructions for it.

    torch has no public name for them. What its private one gives is held against known products before it is used.
    """
    return device.type == "cpu" and _can("_is_vnni_supported") and _has_kernels() and _multiplies_int8()


def int8_product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """left @ right in int32, exactly, if no sum passes 2^31: up to 133,000 products of numbers up to 127."""
    found: Tensor = torch._int_mm(left, right) if out is None else torch._int_mm(left, right, out=out)
    return found


def _can(question: str) -> bool:
    """What torch answers, in private, of the processor; no, where it does not know the question."""
    try:
        return bool(getattr(torch.cpu, question)())
    except AttributeError:
        return False


def _has_kernels() -> bool:
    found: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return found


@cache
def _multiplies_int8() -> bool:
    numbers = torch.arange(-127, 129, dtype=torch.int16).clamp_(max=127).to(torch.int8).view(16, 16)
    try:
        return all(
            torch.equal(int8_product(one, other).long(), one.long() @ other.long())
            for one, other in ((numbers, numbers), (numbers, numbers.T), (numbers.T, numbers))
        )
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
