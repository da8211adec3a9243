"""How often sampled text alone tells which known model is served, and after how many tokens, beside ln(1/alpha) / KLD.

    python benchmarks/which_model_is_served.py BASE FINETUNE [--runs 5] [--answers 32]

Each candidate in turn is the one that is served: base, base + rank-2, -8, -32 delta, the finetune, and the finetune in
q4_0. Runs have prompts and samples of their own; answers of up to 48 tokens at temperature 1. The models, the
likelihoods, the rule of exclusion and the least number of tokens before a model is named are those of `deltarank
endpoints --weights`; the server is transformers, in this process. With `--third MODEL` another finetune is served, too,
that is no candidate. Tokens are counted until all other candidates are excluded, or all where it is none of them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from deltarank.checkpoints import open_checkpoint
from deltarank.divergence import PLAIN, Answer, Prompt, tokens_needed
from deltarank.jobs.endpoints.answer_rounds import ANSWER_TOKENS, ROUNDS
from deltarank.jobs.endpoints.identification_evidence import FEWEST_TOKENS, CandidateName, EndpointEvidence
from deltarank.jobs.endpoints.known_models import KnownModels
from deltarank.jobs.endpoints.known_weights import KnownWeights
from deltarank.jobs.endpoints.sampled_answer import SampledAnswer
from deltarank.jobs.outputs import ServedModels
from deltarank.models import EditedWeights, generate_answers, load_model, read_skeleton
from deltarank.openai_api import fresh_prompt
from deltarank.results import EndpointApi
from deltarank.runtime import ProgressListener

RANKS, YARDSTICKS = (2, 8, 32), ("q4_0",)
ALPHA, TOLERANCE = 0.01, 0.002
BATCH = 64
Answers = list[SampledAnswer]
NONE, UNDECIDED = "none of these", "not decided"


@dataclass
class Run:
    """One run: what is served, and what was found."""

    served: str
    number: int
    evidence: EndpointEvidence
    asked: int = 0
    found: str = UNDECIDED
    tokens: int = 0
    left: tuple[str, ...] = field(default=())

    @property
    def is_over(self) -> bool:
        return self.found != UNDECIDED


def prompt_ids(known: KnownModels, seed: int, number: int) -> list[int]:
    """As much of a fresh prompt as leaves room for the answer."""
    text = fresh_prompt(seed, "benchmark", number, EndpointApi.COMPLETIONS)
    return known.tokens.prompt_ids(text)[: known.context - 2 * min(ANSWER_TOKENS, known.context // 4)]


def answers_of(model: Any, known: KnownModels, runs: Sequence[Run], until: int, seed: int) -> list[Answers]:
    """The next answers of each run, sampled from a loaded model."""
    prompts = [
        Prompt("", tokens=tuple(prompt_ids(known, 1000 * seed + run.number, number)))
        for run in runs
        for number in range(run.asked, until)
    ]
    limits = {"max_tokens": min(ANSWER_TOKENS, known.context // 4), "context": known.context}
    tokenizer, first = known.tokens.tokenizer, 10_000 * until
    found = generate_answers(model, tokenizer, prompts, samples=1, seed=seed, batch=BATCH, first=first, **limits)
    each = iter(found)
    return [[sampled(next(each), known) for _ in range(run.asked, until)] for run in runs]


def sampled(answer: Answer, known: KnownModels) -> SampledAnswer:
    has_ended = bool(answer.ids) and answer.ids[-1] in known.ends
    return SampledAnswer(answer.prompt_ids, answer.ids[:-1] if has_ended else answer.ids, has_ended)


def weigh(run: Run, names: Sequence[str]) -> None:
    weighed = run.evidence.weigh()
    run.left = tuple(names[i] for i in weighed.left)
    if weighed.is_decided:
        excluded = (weighed.log_e >= np.log(1 / ALPHA)).sum(axis=0)
        answers = int((excluded == excluded[-1]).argmax())
        run.tokens = sum(len(each.by_setting) for each in run.evidence.scores[0][: answers + 1])
        run.found = NONE if weighed.best is None else names[weighed.best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("finetune", type=Path)
    parser.add_argument("--third", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--answers", type=int, default=32, help="of a run, at most")
    given = parser.parse_args()
    weights = KnownWeights(base=str(given.base), finetune=str(given.finetune), ranks=RANKS, yardsticks=YARDSTICKS)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_checkpoint(given.base) as base,
        open_checkpoint(given.finetune) as finetune,
        ServedModels(
            base, finetune, weights.options(), Path(folder), fetch="auto", progress=ProgressListener()
        ) as served,
    ):
        known = KnownModels(served)
        measure(served, known, given)


def measure(served: ServedModels, known: KnownModels, given: argparse.Namespace) -> None:
    names = [CandidateName(name, known.kind(name), known.rank(name)) for name in known.names]
    third = [given.third.name] if given.third else []
    apart = np.zeros((len(names), len(names)))
    runs = [
        Run(name, number, EndpointEvidence(names, apart, ALPHA, TOLERANCE))
        for name in (*known.names, *third)
        for number in range(given.runs)
    ]
    enough = FEWEST_TOKENS / ANSWER_TOKENS  # fewer answers decide nothing
    for until in [each for each in ROUNDS if enough <= each <= given.answers]:
        new: list[tuple[Run, Answers]] = []
        for seed, name in enumerate((*known.names, *third)):
            opened = [run for run in runs if run.served == name and not run.is_over]
            if opened:
                new += zip(opened, sample(served, known, opened, until, seed, given.third), strict=True)
        score(known, new, until)
        print(f"\nAfter {until} answers, {sum(run.is_over for run in runs)} of {len(runs)} runs are decided:")
        report(known, runs, apart_on_text(known, runs))


def sample(
    served: ServedModels, known: KnownModels, runs: Sequence[Run], until: int, seed: int, third: Path | None
) -> list[Answers]:
    """Of runs in which the same is served."""
    name = runs[0].served
    if name in known.names:
        with served.load(name) as loaded:
            return answers_of(loaded.model, known, runs, until, seed)
    assert third is not None
    with open_checkpoint(third) as checkpoint:
        options = served.options
        weights = EditedWeights(checkpoint, [], options.torch_device)
        model = load_model(read_skeleton(checkpoint), weights, dtype=options.torch_dtype, device=options.torch_device)
        return answers_of(model, known, runs, until, seed)


def score(known: KnownModels, new: Sequence[tuple[Run, Answers]], until: int) -> None:
    readable = [(run, [each for each in answers if each.tokens]) for run, answers in new]
    passing = known.score([each for _, answers in readable for each in answers])
    first = 0
    for run, answers in readable:
        run.evidence.add([scores[first : first + len(answers)] for scores in passing.scores])
        first += len(answers)
        run.asked = until
        weigh(run, known.names)


def apart_on_text(known: KnownModels, runs: Sequence[Run]) -> np.ndarray:
    """KLD from each candidate to each other: the mean log-likelihood ratio on its own text."""
    rows = []
    for name in known.names:
        own = [run for run in runs if run.served == name]
        plain = [
            np.concatenate([score.by_setting[:, PLAIN] for run in own for score in run.evidence.scores[i]])
            for i in range(len(known.names))
        ]
        me = known.names.index(name)
        rows.append([float((plain[me] - other).mean()) for other in plain])
    return np.array(rows)


def report(known: KnownModels, runs: Sequence[Run], apart: np.ndarray) -> None:
    names = list(known.names)
    heads = (
        "served",
        "found",
        "left if not decided",
        "tokens (median)",
        "nearest candidate",
        "KLD",
        "ln(1/alpha) / KLD",
    )
    print(f"\n| {' | '.join(heads)} |")
    print("| --- | --- | --- | ---: | --- | ---: | ---: |")
    for name in dict.fromkeys(run.served for run in runs):
        own = [run for run in runs if run.served == name]
        found = Counter(run.found for run in own)
        shown = ", ".join(f"{each} {number}" for each, number in found.most_common())
        left = Counter(" or ".join(run.left) for run in own if not run.is_over)
        tokens = [run.tokens for run in own if run.is_over]
        asked = max(run.evidence.tokens for run in own)
        middle = f"{median(tokens):,.0f}" if len(tokens) == len(own) else f"over {asked:,}"
        print(f"| {name} | {shown} | {'; '.join(f'{k} {v}' for k, v in left.items()) or '-'} | {middle} |", end="")
        if name in names:
            i = names.index(name)
            nearest = min((j for j in range(len(names)) if j != i), key=lambda j: apart[i, j])
            kld = apart[i, nearest]
            print(f" {names[nearest]} | {kld:.2g} | {tokens_needed(kld, ALPHA):,.0f} |", flush=True)
        else:
            print(" - | - | - |")


if __name__ == "__main__":
    main()
