"""The test of sampled texts beside Model Equality Testing (MET; Gao et al. 2024, arXiv 2410.20247), on the same texts.

    python benchmarks/endpoints_beside_met.py sample MODEL NAME.jsonl [--draws 10] [--prompts 90] [--tokens 48]
    python benchmarks/endpoints_beside_met.py compare A.jsonl B.jsonl [--runs 100]

`sample` draws texts at temperature 1 with transformers, after the prompts that `deltarank endpoints` makes. `compare`
draws 25 of the prompts for each run and gives both tests the same 10 texts of each model to each. MET is its published
method: an MMD with a Hamming kernel on characters, over all prompts, and the share of 500 permutations of all labels
that reach it (`two_sample_permutation_pvalue` of model_equality_testing 0.0.2, with the kernel computed once). Ours may
stop at any prompt. Give the same file twice for equal models: then each run splits the texts of each prompt at random.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from deltarank.jobs.endpoints.evidence import PromptScore
from deltarank.jobs.endpoints.options import EndpointsOptions
from deltarank.jobs.endpoints.sampled_texts import SampledTexts
from deltarank.openai_api import EndpointAnswer, fresh_prompt
from deltarank.results import Capabilities, EndpointApi, EndpointTestName

PROMPTS, DRAWS, PERMUTATIONS = 25, 10, 500
LEVELS = (0.05, 0.01)
SEED = 5
MOST_PROMPT_TOKENS = 100
PROMPTS_AT_ONCE = 10

Texts = Sequence[Sequence[str]]
"""Of each prompt, the texts of one model."""


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    sample = commands.add_parser("sample")
    sample.add_argument("model")
    sample.add_argument("output", type=Path)
    for name, default in (("draws", DRAWS), ("prompts", 90), ("tokens", 48), ("seed", 1)):
        sample.add_argument(f"--{name}", type=int, default=default)
    compare = commands.add_parser("compare")
    compare.add_argument("a", type=Path)
    compare.add_argument("b", type=Path)
    compare.add_argument("--runs", type=int, default=100)
    given = parser.parse_args()
    if given.command == "sample":
        with given.output.open("w") as file:
            for texts in sampled(given.model, given.prompts, given.draws, given.tokens, given.seed):
                file.write(json.dumps({"texts": texts}) + "\n")
    else:
        print_powers(given.a, given.b, given.runs)


def sampled(model_folder: str, prompts: int, draws: int, tokens: int, seed: int) -> Iterator[list[str]]:
    """The texts to each prompt. Prompts are cut at their start to equal lengths, ten at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    given = [tokenizer(fresh_prompt(SEED, "power", i, EndpointApi.COMPLETIONS))["input_ids"] for i in range(prompts)]
    for start in range(0, prompts, PROMPTS_AT_ONCE):
        part = given[start : start + PROMPTS_AT_ONCE]
        length = min(MOST_PROMPT_TOKENS, *map(len, part))
        with torch.inference_mode():
            found = model.generate(
                torch.tensor([ids[-length:] for ids in part]),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                num_return_sequences=draws,
                max_new_tokens=tokens,
            )
        texts = tokenizer.batch_decode(found[:, length:], skip_special_tokens=True)
        yield from (texts[i : i + draws] for i in range(0, len(texts), draws))


def print_powers(a: Path, b: Path, runs: int) -> None:
    first, second = (read(each) for each in (a, b))
    shared = min(len(first), len(second))
    found: dict[str, list[tuple[bool, int]]] = {}
    for run in range(runs):
        rng = np.random.default_rng(run)
        chosen = rng.permutation(shared)[:PROMPTS]
        texts_a, texts_b = split(first, rng) if a == b else (first, second)
        pair = [texts_a[i][:DRAWS] for i in chosen], [texts_b[i][:DRAWS] for i in chosen]
        found.setdefault("MET, alpha 0.05", []).append((met_p(*pair, rng) <= LEVELS[0], PROMPTS))
        wealth = log_e_values(*pair, seed=run)
        for level in LEVELS:
            reached = np.flatnonzero(wealth >= -np.log(level))
            stop = int(reached[0]) + 1 if len(reached) else PROMPTS
            found.setdefault(f"deltarank, alpha {level:g}", []).append((bool(len(reached)), stop))
    for name, outcomes in found.items():
        hits = sum(hit for hit, _ in outcomes)
        interval = binomtest(hits, runs).proportion_ci()
        print(
            f"{a.stem} beside {b.stem} | {name} | {100 * hits / runs:.0f} % "
            f"({100 * interval.low:.0f} to {100 * interval.high:.0f}) | "
            f"{2 * DRAWS * int(np.median([stop for _, stop in outcomes]))} texts",
            flush=True,
        )


def read(path: Path) -> Texts:
    return [json.loads(line)["texts"] for line in path.read_text().splitlines()]


def split(texts: Texts, rng: np.random.Generator) -> tuple[Texts, Texts]:
    """Each half of the texts to a prompt, at random."""
    orders = [rng.permutation(len(each)) for each in texts]
    halves = [[each[i] for i in order] for each, order in zip(texts, orders, strict=True)]
    return [each[: len(each) // 2] for each in halves], [each[len(each) // 2 :] for each in halves]


def log_e_values(a: Texts, b: Texts, seed: int) -> np.ndarray:
    """Of the test that `deltarank endpoints` makes, after each prompt."""
    able = Capabilities(EndpointApi.COMPLETIONS, 0, greedy_repeats=True)
    test = SampledTexts(EndpointsOptions(seed, test=EndpointTestName.SAMPLES), {"a": able, "b": able})
    test.draws = DRAWS
    scores: list[PromptScore] = []
    for texts_a, texts_b in zip(a, b, strict=True):
        score = test.score([answer(each) for each in texts_a], [answer(each) for each in texts_b], 0)
        assert score is not None
        scores.append(score)
    return test.design.log_e_different(scores)


def answer(text: str) -> EndpointAnswer:
    return EndpointAnswer(text, "", (), (), (), has_token_ids=False)


def met_p(a: Texts, b: Texts, rng: np.random.Generator) -> float:
    """MET's p-value. The kernel is 0 between texts to different prompts."""
    length = max(1, *(len(text) for texts in (*a, *b) for text in texts))
    kernels = np.array([hamming([*x, *y], length) for x, y in zip(a, b, strict=True)])
    prompts, texts = kernels.shape[:2]
    true = np.tile(np.r_[np.ones(texts // 2), np.zeros(texts // 2)], (1, prompts, 1))
    pooled = np.array([rng.permutation(true.ravel()) for _ in range(PERMUTATIONS)]).reshape(-1, prompts, texts)
    (observed,), permuted = discrepancy(kernels, true), discrepancy(kernels, pooled)
    return float((permuted >= observed).mean())


def hamming(texts: Sequence[str], length: int) -> np.ndarray:
    """The share of equal characters, (texts, texts), with a diagonal of 0; texts are padded to `length`."""
    codes = np.array([[*map(ord, text.ljust(length, "\0"))] for text in texts])
    kernel = (codes[:, None] == codes[None]).mean(axis=2)
    np.fill_diagonal(kernel, 0)
    return kernel


def discrepancy(kernels: np.ndarray, is_a: np.ndarray) -> np.ndarray:
    """(labellings,), from (prompts, texts, texts) and (labellings, prompts, texts)."""
    is_b = 1 - is_a

    def mean(left: np.ndarray, right: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        return (left * np.matmul(right[:, :, None], kernels)[:, :, 0]).sum(axis=(1, 2)) / pairs.sum(axis=1)

    n_a, n_b = is_a.sum(axis=2), is_b.sum(axis=2)
    return mean(is_a, is_a, n_a * (n_a - 1)) + mean(is_b, is_b, n_b * (n_b - 1)) - 2 * mean(is_a, is_b, n_a * n_b)


if __name__ == "__main__":
    main()
