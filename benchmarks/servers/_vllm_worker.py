"""Runs in vLLM's environment, and imports nothing of deltarank: `python -P _vllm_worker.py TASK.json ANSWERS.jsonl`.

Appends one line of JSON for each answer: the log-probabilities of the next token, all tokens of the vocabulary, for
each prompt; or the error. The first line is the model's own. The caller restarts it for what is missing after a crash.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
"""Read by vLLM when it is imported."""


def main(task: dict[str, Any], answers: Path) -> None:
    os.environ.update(SETTINGS)
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    with answers.open("a") as file:

        def answer(name: str, **fields: Any) -> None:
            print(json.dumps({"name": name, **fields}), file=file, flush=True)

        try:
            model = LLM(
                task["model"],
                enable_lora=True,
                max_lora_rank=task["max_lora_rank"],
                dtype="float32",
                enforce_eager=True,
                max_model_len=128,
                max_logprobs=task["vocabulary"],
                max_num_seqs=4,
                enable_prefix_caching=False,
                seed=0,
                **task.get("options", {}),
            )
        except Exception as error:
            answer("", error=describe(error))
            return
        fault = ""
        try:
            answer("", values=predict(model, task))
        except Exception as error:  # a model without kernels for this machine: its adapters can be loaded only
            fault = describe(error)
            answer("", error=fault)
        for number, (name, folder) in enumerate(task["adapters"].items(), 1):
            request = LoRARequest(name, number, folder)
            try:
                model.llm_engine.add_lora(request)  # a load that fails inside `generate` leaves the engine waiting
                if fault:
                    answer(name, error=f"loads, but predicts nothing: {fault}")
                else:
                    answer(name, values=predict(model, task, request))
                model.llm_engine.remove_lora(number)
            except Exception as error:
                answer(name, error=describe(error))


def predict(model: Any, task: dict[str, Any], adapter: Any = None) -> list[list[float]]:
    from vllm import SamplingParams

    asked = [{"prompt_token_ids": prompt} for prompt in task["prompts"]]
    settings = SamplingParams(max_tokens=1, logprobs=task["vocabulary"], temperature=0)
    rows = []
    for output in model.generate(asked, settings, lora_request=adapter, use_tqdm=False):
        found = output.outputs[0].logprobs[0]
        rows.append([found[token].logprob if token in found else float("nan") for token in range(task["vocabulary"])])
    return rows


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:800]}"


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    os._exit(0)  # vLLM takes a minute to stop
