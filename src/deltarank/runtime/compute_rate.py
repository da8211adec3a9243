"""How fast a device multiplies matrices, for the estimates of plans."""

from __future__ import annotations

import torch

_RATES = {("cpu", 4): 1.2e11, ("cuda", 4): 3e13, ("cuda", 2): 3e14}
"""By device and bytes of a number; rough. CPU: two cores with AVX-512, measured on SmolLM2-135M."""


def operations_per_second(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Multiplications and additions a second in large matrix products; those of a CPU where the device is unknown.

    Args:
        device: its type, such as "cuda".
    """
    return _RATES.get((device, dtype.itemsize), _RATES["cpu", 4])
