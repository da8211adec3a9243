"""How often `deltarank endpoints` decides rightly, and after how many requests: simulated endpoints, the real analysis.

    python benchmarks/endpoints_decide_rightly.py [runs]     # 15 % of them for sampled texts

An endpoint is a table of distributions over 64 words: logits of N(0, 2^2) that a hash of the context decides, with
noise of N(0, change^2) added by a finetune. Each run has prompts of its own. Two models of equal weights on two kinds
of kernels differ by a fixed noise of 0.01 in the logits; jitter is noise that changes with every answer.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from deltarank.jobs.endpoints.options import EndpointsOptions
from deltarank.jobs.endpoints.pair_tests import LADDER
from deltarank.jobs.endpoints.spending import BudgetSpentError
from deltarank.jobs.endpoints.test_loop import TestLoop
from deltarank.openai_api import EndpointRef, Exchange, Request
from deltarank.results import Capabilities, EndpointApi, EndpointTestName

WORDS = 64
SHARPNESS = 2.0
MOST_REQUESTS = {True: 560, False: 250}
"""Of a run, beside the probe; more for sampled texts."""


@dataclass(frozen=True)
class Served:
    """A model: the size of its change, its own rounding, and noise in every answer."""

    change: float = 0.0
    rounding: float = 0.0
    jitter: float = 0.0


@dataclass(frozen=True)
class Case:
    name: str
    a: Served
    b: Served


CASES = (
    Case("equal weights, one kernel", Served(), Served()),
    Case("equal weights, two kernels", Served(rounding=0.01), Served(rounding=-0.01)),
    Case("equal weights, jitter 0.1", Served(jitter=0.1), Served(jitter=0.1)),
    Case("change 0.1", Served(), Served(0.1)),
    Case("change 0.2", Served(), Served(0.2)),
    Case("change 0.4", Served(), Served(0.4)),
    Case("change 1", Served(), Served(1.0)),
)


def noise(name: str) -> np.ndarray:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(number).standard_normal(WORDS)


def log_probabilities(model: Served, context: str, rng: np.random.Generator | None) -> np.ndarray:
    logits = SHARPNESS * noise(context)
    if model.change:
        logits = logits + model.change * noise(f"change {context}")
    if model.rounding:
        logits = logits + model.rounding * noise(f"rounding {context}")
    if model.jitter and rng is not None:
        logits = logits + model.jitter * rng.standard_normal(WORDS)
    return logits - np.log(np.exp(logits).sum())


class Simulated:
    """Answers requests as an `Asker` does, from the two models of a case."""

    def __init__(self, case: Case, seed: int, most: int) -> None:
        self._models = {"a": case.a, "b": case.b}
        self._rng = np.random.default_rng(seed)
        self._most = most
        self.requests = 0

    def ask_all(self, requests: Sequence[Request]) -> list[Exchange]:
        if self.requests + len(requests) > self._most:
            raise BudgetSpentError("the cap is reached")
        self.requests += len(requests)
        return [Exchange(each.body, self._answer(each)) for each in requests]

    def _answer(self, request: Request) -> dict[str, Any]:
        model, context, words, positions = self._models[request.side], str(request.body["prompt"]), [], []
        for _ in range(int(request.body["max_tokens"])):
            found = log_probabilities(model, context, self._rng)
            is_greedy = request.body["temperature"] == 0
            word = int(found.argmax()) if is_greedy else int(self._rng.choice(WORDS, p=np.exp(found)))
            words.append(f" {chr(97 + word // 8)}{chr(97 + word % 8)}")
            shown = np.argsort(-found)[: request.body.get("logprobs") or 0]
            positions.append({f"w{i}": float(found[i]) for i in shown})
            context = f"{context}{words[-1]}"
        listed = {"tokens": words, "token_logprobs": [None] * len(words), "top_logprobs": positions}
        usage = {"prompt_tokens": 60, "completion_tokens": len(words)}
        return {"choices": [{"text": "".join(words), "logprobs": listed}], "usage": usage}


def run(case: Case, name: EndpointTestName, seed: int) -> tuple[str, int, int]:
    """What was decided, after how many requests and prompts."""
    able = Capabilities(EndpointApi.COMPLETIONS, 20, greedy_repeats=True)
    options = EndpointsOptions(seed, test=name)
    test = next(kind for kind in LADDER if kind.name is name)(options, {"a": able, "b": able})
    refs = {side: EndpointRef("m", "http://host") for side in ("a", "b")}
    asker = Simulated(case, random.Random(seed).getrandbits(32), MOST_REQUESTS[name is EndpointTestName.SAMPLES])
    found, _ = TestLoop(test, refs, options, asker, lambda *_: None).run()  # type: ignore[arg-type]
    assert found is not None
    return found.decided.value if found.decided else "undecided", asker.requests, found.n


def kld(case: Case) -> float:
    rows = [(log_probabilities(case.a, f"k{i}", None), log_probabilities(case.b, f"k{i}", None)) for i in range(1000)]
    return float(np.mean([(np.exp(p) * (p - q)).sum() for p, q in rows]))


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    names = (EndpointTestName.FIRST_TOKEN_LOGPROBS, EndpointTestName.GREEDY_FIRST_TOKEN, EndpointTestName.SAMPLES)
    print("| test | case | KLD | different (95 % interval) | no difference | undecided | median requests |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, case in itertools.product(names, CASES):
        is_slow = name is EndpointTestName.SAMPLES
        if not (is_slow and case.a != Served()):
            found = [run(case, name, seed) for seed in range(runs * 3 // 20 if is_slow else runs)]
            different = sum(each[0] == "different" for each in found)
            interval = binomtest(different, len(found)).proportion_ci()
            shares = [
                f"{100 * sum(each[0] == kind for each in found) / len(found):.1f} %" for kind in ("same", "undecided")
            ]
            print(
                f"| {name.value} | {case.name} | {kld(case):.2g} | {100 * different / len(found):.1f} % "
                f"({100 * interval.low:.1f} to {100 * interval.high:.1f}) | {shares[0]} | {shares[1]} "
                f"| {int(np.median([each[1] for each in found]))} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
