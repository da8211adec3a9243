"""The LoRA slots of a model of vLLM. A module of its own, which the processes of a tensor-parallel model import."""

from __future__ import annotations

from typing import Any


def allocated(model: Any) -> dict[str, int]:
    """Each storage once: a stacked module has several tensors, experts have views of one."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.endswith(("lora_a_stacked", "lora_b_stacked")):
                continue
            for tensor in value if isinstance(value, (tuple, list)) else [value]:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    leaf = name.rpartition(".")[2]
                    found[leaf] = found.get(leaf, 0) + storage.nbytes()
    return found
