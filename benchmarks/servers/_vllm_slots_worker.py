"""Runs in vLLM's environment, and imports nothing of deltarank: `python -P _vllm_slots_worker.py TASK.json`.

Prints a line of JSON: the bytes of the LoRA slots that vLLM allocated for a model, in all and by the last component of
the modules' names; or, for experts, the bytes that `create_lora_weights` allocates for a layer of given sizes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.append(str(Path(__file__).parent))  # -P leaves it out, and at the front vllm.py would be vLLM

from _vllm_allocated import allocated


def of_model(task: dict[str, Any]) -> dict[str, int]:
    from vllm import LLM

    model = LLM(
        task["model"],
        enable_lora=True,
        max_loras=task["slots"],
        max_lora_rank=task["rank"],
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=4,
        seed=0,
        tensor_parallel_size=task.get("gpus", 1),
        **task.get("options", {}),
    )
    found = model.apply_model(allocated)  # of each GPU; here, of each process that takes the place of one
    assert all(each == found[0] for each in found)
    return dict(found[0])


def of_experts(task: dict[str, Any]) -> dict[str, int]:
    """vLLM's own allocation for one layer of experts, which its build for processors cannot run."""
    import torch
    from vllm.lora.layers.fused_moe import FusedMoE3DWithLoRA, FusedMoEWithLoRA

    kind: Any = FusedMoE3DWithLoRA if task["fused"] else FusedMoEWithLoRA
    config = SimpleNamespace(
        max_lora_rank=task["rank"],
        max_loras=task["slots"],
        lora_dtype=torch.bfloat16,
        fully_sharded_loras=False,
        enable_moe_shared_loras=False,
    )
    layer = SimpleNamespace(
        fully_sharded=False,
        tp_size=task["gpus"],
        device="cpu",
        local_num_experts=task["experts"],
        hidden_size=task["hidden"],
        intermediate_size_per_partition=task["inner"] // task["gpus"],
        _w13_slices=1 if task["fused"] else 2,
        _w13_a_num_experts=task["experts"],
        _w2_b_num_experts=task["experts"],
    )
    kind._create_lora_a_weights(layer, task["slots"], config)
    kind._create_lora_b_weights(layer, task["slots"], config)
    return allocated(SimpleNamespace(named_modules=lambda: [("experts", layer)]))


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    print("\n" + json.dumps({"found": of_experts(task) if "experts" in task else of_model(task)}), flush=True)
    for process in multiprocessing.active_children():  # those of the other GPUs
        process.terminate()
    os._exit(0)  # vLLM takes a minute to stop
