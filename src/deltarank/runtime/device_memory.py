"""How much memory a device has for a job."""

from __future__ import annotations

import torch

from deltarank.system import memory_limit


def available_memory(device: torch.device) -> int | None:
    """Bytes that tensors on this device can take; None if unknown.

    On a CUDA device: what is free, which other processes may have made less than the total, and what torch's allocator
    holds unused. On any other: the memory of the machine, or the limit of this process's control group.
    """
    if device.type != "cuda":
        return memory_limit()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
