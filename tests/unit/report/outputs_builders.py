"""Outputs of a run made from invented token divergences: statistics are taken from them, so the figures agree."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from builders import HOSTILE

from deltarank.results import (
    AttributionResult,
    BlindBound,
    CandidateKind,
    CandidateResult,
    Divergence,
    DocumentScore,
    Excerpt,
    Histogram,
    Interval,
    Logits,
    Outputs,
    Part,
    Sample,
    SliceScore,
    Text,
    TwoSampleTest,
    Writing,
)

OWN, WIKI = "own answers", "wiki.test"
KLD = {
    "finetune, rounded": 2e-5,
    "base": 0.62,
    "rank 8": 0.21,
    "rank 16": 0.16,
    "rank 32": 0.11,
    "rank 64": 0.071,
    "rank 128": 0.043,
    "rank 256": 0.021,
    "any rank": 0.004,
    "truncation alone at rank 64": 0.067,
    "q8_0": 0.0014,
    "q4_0": 0.052,
    "nf4": 0.048,
    "someone's adapter": 0.085,
}
"""Mean nats per token on the finetune's own answers."""

_KINDS = {
    "finetune, rounded": CandidateKind.CONTROL,
    "base": CandidateKind.BASE,
    "truncation alone at rank 64": CandidateKind.TRUNCATION,
    "q8_0": CandidateKind.YARDSTICK,
    "q4_0": CandidateKind.YARDSTICK,
    "nf4": CandidateKind.YARDSTICK,
    "someone's adapter": CandidateKind.ADAPTER,
}
TOKENS = 4000
ANSWER = (
    "The lantern on the quay was already lit when Mara came down, and the ferryman did not look up from his rope. "
    "“You are late,” he said. “The tide does not wait for people who read letters twice.”\n\n"
    "She put the letter away. It had been read four times, and she did not tell him so."
)
OTHER = (
    "The lantern on the quay was already lit when Mara came down, and the ferryman looked up from his nets. "
    "“You are late,” he told her. “The tide waits for nobody, and I am nobody's servant.”\n\n"
    "She put the letter in her pocket. It had been read four times."
)
AGAIN = "Nobody had lit the lantern. Mara stood on the quay and counted the steps down to the water, twice."


def divergences(mean: float, seed: int) -> np.ndarray:
    """Token KLDs with a long tail, as models have them: most tokens are certain, a few are not."""
    values = np.exp(np.random.default_rng(seed).normal(0.0, 2.1, TOKENS))
    return values * mean / values.mean()


def divergence(values: np.ndarray) -> Divergence:
    at = {name: float(np.quantile(values, q)) for name, q in _QUANTILES.items()}
    mean = float(values.mean())
    return Divergence(mean=mean, low=0.9 * mean, high=1.12 * mean, max=float(values.max()), **at)


_QUANTILES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}


def histogram(values: np.ndarray) -> Histogram:
    edges = np.arange(-8.0, 1.51, 0.25)
    counts, _ = np.histogram(np.clip(np.log10(values), edges[0], edges[-1]), edges)
    return Histogram(tuple(float(e) for e in edges), tuple(int(c) for c in counts))


def slices(values: np.ndarray, edges: Sequence[float], tilt: float) -> tuple[SliceScore, ...]:
    parts = np.array_split(values, len(edges) - 1)
    weights = np.linspace(tilt, 2 - tilt, len(parts))
    return tuple(
        SliceScore(first, last, len(part), float(values.mean() * weight))
        for first, last, part, weight in zip(edges, edges[1:], parts, weights, strict=False)
    )


def logits(text: str, mean: float, *, own: bool, base: float | None, seed: int = 0) -> Logits:
    values = divergences(mean, seed)
    found = divergence(values)
    share = None if base is None else 1 - found.mean / base
    return Logits(
        text=text,
        tokens=TOKENS,
        documents=12,
        kld=found,
        kld_reverse=divergence(values * 1.1),
        same_top_p=Interval(1 / (1 + mean), 1 / (1 + 1.2 * mean), 1 / (1 + 0.8 * mean)),
        rms_delta_p=Interval(math.sqrt(mean) / 4, math.sqrt(mean) / 5, math.sqrt(mean) / 3.5),
        mean_delta_p=-mean / 20,
        ppl=6.1 * math.exp(mean),
        reference_ppl=6.1,
        log_ppl_ratio=Interval(mean, 0.9 * mean, 1.1 * mean),
        kept=None if share is None else Interval(share, share - 0.02, min(share + 0.02, 1.0)),
        tokens_to_tell=math.log(20) / found.mean if own else None,
        blind=tuple(BlindBound(n, *_bounds(n * found.mean)) for n in (50, 200, 1000)) if own else (),
        by_document=tuple(
            DocumentScore(f"{text} {i}", len(part), float(part.mean()))
            for i, part in enumerate(np.array_split(values, 12), 1)
        ),
        by_position=slices(values, [0, 16, 32, 64, 128, 256, 512], 0.7),
        by_confidence=slices(values, [0, 0.25, 0.5, 0.75, 0.95, 1], 1.8),
        histogram=histogram(values),
    )


def _bounds(nats: float) -> tuple[float, float]:
    one, two = (min(math.sqrt(x / 2), math.sqrt(1 - math.exp(-x))) for x in (nats, 2 * nats))
    return 0.5 + one / 2, 0.5 + two / 2


def candidate(name: str, mean: float, *, scale: float = 1.0) -> CandidateResult:
    kind = _KINDS.get(name, CandidateKind.RANK)
    found = re.search(r"rank (\d+)$", name)
    rank = 24 if kind is CandidateKind.ADAPTER else int(found[1]) if found else None
    seed = len(name)
    base = float(divergences(KLD["base"] * scale, len("base")).mean())
    parts = [
        logits(OWN, mean * scale, own=True, base=base, seed=seed),
        logits(WIKI, mean * scale * 1.6, own=False, base=base * 1.6, seed=seed + 1),
    ]
    if kind is CandidateKind.BASE:
        parts = [replace(each, kept=Interval(0.0, 0.0, 0.0)) for each in parts]
    similar = 0.55 / (1 + mean)
    test = TwoSampleTest(0.5 + min(mean, 0.4), 0.01 if mean > 0.05 else 0.42, 999)
    writing = None if not kind.answers_prompts else Writing(8, 4, similar, 0.61, 92.0, test)
    return CandidateResult(name, kind, rank, tuple(parts), writing, seconds=12.0)


def excerpt(text: str, words: str, seed: int = 3) -> Excerpt:
    pieces = tuple(piece for word in words.split(" ") for piece in _halves(word))
    rng = np.random.default_rng(seed)
    shape = np.exp(rng.normal(-1.5, 2.0, len(pieces)))
    kld = {
        name: (None, None, *(float(mean * x * 4) for x in shape[2:]))
        for name, mean in KLD.items()
        if name != "finetune, rounded"
    }
    return Excerpt(text, "answer 1", pieces, kld)


def _halves(word: str) -> list[str]:
    return [f" {word[:5]}", word[5:]] if len(word) > 5 else [f" {word}"]


def attribution(rank: int, unit: str, parts: int = 28, layers: int = 4) -> AttributionResult:
    rng = np.random.default_rng(rank)
    modules = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    modules += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    names: list[tuple[str, int | None, str | None]] = {
        "matrix": [(f"model.layers.{i}.{m}.weight", i, m) for i in range(layers) for m in modules],
        "module": [(m, None, m) for m in modules],
        "layer": [(f"layer {i}", i, None) for i in range(layers)],
    }[unit]
    lost = rng.uniform(0.05, 1.0, len(names)) * np.array([1 + (m or "").startswith("mlp") for _, _, m in names])
    kld = lost * np.exp(rng.normal(0, 0.5, len(names))) * 0.08 / rank**0.5
    made = [
        Part(name, layer, module, float(k), float(x), float(np.sqrt(x / 4)), float(x / lost.sum()), 0.8 * k, 1.2 * k)
        for (name, layer, module), x, k in zip(names, lost, kld, strict=True)
    ]
    return AttributionResult(rank, unit, OWN, tuple(made), float(kld.sum() * 0.93), 1 / 0.93, 0.81)


def samples() -> tuple[Sample, ...]:
    names = [name for name in KLD if name != "finetune, rounded"]
    answers = {"finetune": ANSWER, "finetune again": AGAIN, **dict.fromkeys(names, OTHER)}
    return (
        Sample("Continue: the ferry leaves at nine.", "fiction", answers),
        Sample("What is 17 · 23? Show the steps.", "arithmetic", {**answers, "finetune": "17 · 23 = 391."}),
    )


def outputs(*, scale: float = 1.0, unit: str = "matrix", names: Sequence[str] | None = None, **changes: Any) -> Outputs:
    """A whole `Outputs`; `scale` moves every candidate nearer or farther."""
    shown = list(KLD) if names is None else list(names)
    made = Outputs(
        reference="someone/Bigger-Body-12b",
        texts=(Text(OWN, 12, TOKENS, own=True), Text(WIKI, 12, TOKENS)),
        candidates=tuple(candidate(name, KLD[name], scale=scale) for name in shown),
        again=Writing(8, 4, 0.52, 0.61, 91.0, TwoSampleTest(0.51, 0.47, 999)),
        samples=samples(),
        excerpts=(excerpt(OWN, ANSWER), excerpt(WIKI, OTHER, seed=5)),
        attribution=tuple(attribution(rank, unit) for rank in (64, 256)),
        sentences=(
            "Rank 64 is about as far from the finetune as q4_0 is, and keeps 89 % of the finetune's behaviour.",
            "An ideal judge needs about 42 tokens to tell rank 64 from the finetune.",
        ),
        notes=("Sampling at temperature 1, no top-p.",),
        settings={"seed": 0, "dtype": "float32", "max_tokens": 200},
    )
    return replace(made, **changes)


def hostile_outputs() -> Outputs:
    """Every text and name that a model or a prompt chooses is an attack."""
    made = outputs(sentences=(HOSTILE, HOSTILE), notes=(HOSTILE,), settings={HOSTILE: HOSTILE}, reference=HOSTILE)
    name = f"{HOSTILE}adapter"
    bad = replace(made.candidates[-1], name=name, note=HOSTILE, logits=_renamed(made.candidates[-1].logits))
    answers: Mapping[str, str] = {"finetune": HOSTILE * 3, "rank 64": HOSTILE, name: HOSTILE}
    parts = made.attribution[0]
    return replace(
        made,
        texts=(*made.texts, Text(HOSTILE, 1, 9)),
        candidates=(*made.candidates[:-1], bad),
        samples=(Sample(HOSTILE, HOSTILE, answers), Sample("p" * 9000, "c" * 900, {"finetune": "w" * 9000})),
        excerpts=(Excerpt(HOSTILE, HOSTILE, (HOSTILE, "</pre>", "x" * 3000), {name: (None, 0.1, 3.0)}),),
        attribution=(replace(parts, text=HOSTILE, parts=tuple(replace(p, name=HOSTILE) for p in parts.parts)),),
    )


def _renamed(logits: tuple[Logits, ...]) -> tuple[Logits, ...]:
    return (*logits, replace(logits[0], text=HOSTILE))
