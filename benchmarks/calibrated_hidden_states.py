"""What gradient descent on an encoder's hidden states would gain over plain extraction: two finetunes of rxnfp's BERT.

    python benchmarks/calibrated_hidden_states.py --data DATA [--steps 45] [--ranks 4,8,16,32,64]

`extract --calibrate` fits next-token predictions, which an encoder does not have. Here the same optimiser, schedule and
step rule move A and B of the plain adapter down the squared error of the last hidden states. Norms, biases and
embeddings are the base's. About 20,000 tokens of reactions are split as in a calibration; of these some fit and some
choose. 250 other reactions are scored, and no patent is in two parts. At ranks 8 and 32 also an anchored closed form,
at rank 8 a descent from there, and one on the error of [CLS] alone. Other figures of earlier runs are kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import BertModel

import _report
import deltarank
from _hidden_states import (
    ALL_TOKENS,
    FIRST_TOKEN,
    RIDGES,
    ModuleOutputs,
    Text,
    copied,
    descend,
    error,
    fit_in_closed_form,
    load,
    read,
    set_factors,
)
from _rxnfp import BASE, CLASSIFIER, FINGERPRINTS, Reaction, Rxnfp
from deltarank.divergence import resample
from deltarank.jobs.calibrate.documents import split_records
from deltarank.results import Interval, figure, percent
from deltarank.system import Default

NAME = Path(__file__).stem
RANKS, ANCHORED_RANKS, VARIED_RANK = "4,8,16,32,64", (8, 32), 8
MATRICES: dict[str, Any] = {"include": ["encoder.*.weight"], "exclude": ["*.LayerNorm.*"]}
SCORED, SCORED_QUICK = 250, 40
LONGEST = 512
ORDER = ("base", "any rank", "plain", "descended", "descended on [CLS]", "anchored", "anchored, descended")
FIGURES = {FINGERPRINTS: ("same nearest", "nearest of its class"), CLASSIFIER: ("same class", "right class")}

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The hidden states of [CLS] -> for each reaction what the finetune is asked for, and the class that this means."""


@dataclass(frozen=True)
class Parts:
    """Reactions that fit, that choose and that are scored. No patent is in two of them."""

    fit: list[Reaction]
    choose: list[Reaction]
    score: list[Reaction]

    @classmethod
    def of(cls, reactions: Sequence[Reaction], tokenizer: Any, *, tokens: int, scored: int) -> Parts:
        """The first two as `extract --calibrate` splits them, with a patent as the group."""
        known = {each.smiles: each for each in reactions}
        records = [{"text": each.smiles, "group": each.patent} for each in reactions]
        split = split_records(records, tokenizer, tokens=tokens, context=LONGEST, seed=0)
        fit, choose = ([known[record["text"]] for record in part] for part in (split.fit, split.choose))
        seen = {each.patent for each in (*fit, *choose)}
        others = {each.smiles: each for each in reactions if each.patent not in seen}
        return cls(fit, choose, list(others.values())[:scored])


@dataclass(frozen=True)
class Score:
    """How far a model's last hidden states are from the finetune's on the reactions that are scored.

    errors, of_first   ||h - h*||^2 of each reaction: of all its tokens, and of [CLS], which is rxnfp's fingerprint
    answers, classes   what the judge makes of it
    steps, ridge       of the factors
    seconds            processor time of the fit
    """

    model: str
    rank: int | None
    errors: np.ndarray[Any, Any]
    of_first: np.ndarray[Any, Any]
    answers: Tensor
    classes: Tensor
    steps: int | None = None
    ridge: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Lesson:
    """A pair of encoders, the adapters of plain extraction, and the texts."""

    models: Rxnfp
    name: str
    parts: Parts
    judge: Judge
    steps: int

    @cached_property
    def finetune(self) -> BertModel:
        return BertModel.from_pretrained(self.models.encoder(self.name)).eval()

    @cached_property
    def fit(self) -> list[Text]:
        return self._texts(self.parts.fit)

    @cached_property
    def choose(self) -> list[Text]:
        return self._texts(self.parts.choose)

    @cached_property
    def score(self) -> list[Text]:
        return self._texts(self.parts.score)

    @cached_property
    def judged(self) -> tuple[Tensor, Tensor]:
        """What the judge makes of the finetune itself."""
        return self.judge(torch.stack([text.expected[0] for text in self.score]))

    @cached_property
    def wanted(self) -> ModuleOutputs:
        modules = self.finetune.encoder.named_modules(prefix="encoder")
        matrices = [name for name, each in modules if isinstance(each, nn.Linear)]
        return ModuleOutputs.of(self.finetune, matrices, [each.ids for each in self.fit])

    def scores(self, ranks: Sequence[int]) -> Iterator[Score]:
        base = BertModel.from_pretrained(self.models.encoder(BASE)).eval()
        yield self._score(base, "base", None)
        base.load_state_dict(self._whole_delta(base))
        yield self._score(base, "any rank", None)
        for rank in ranks:
            yield self._score(self._plain(rank), "plain", rank)
        for rank in ranks:
            model = self._plain(rank)
            plain = copied(model)
            yield self._descended(model, "descended", rank)
            if rank in ANCHORED_RANKS:
                set_factors(model, plain)
                yield self._anchored(model, rank)
            if rank == VARIED_RANK:
                yield self._descended(model, "anchored, descended", rank)
                set_factors(model, plain)
                yield self._descended(model, "descended on [CLS]", rank, FIRST_TOKEN)

    def _texts(self, reactions: Sequence[Reaction]) -> list[Text]:
        tokenizer = self.models.tokenizer()
        ids = [tokenizer(each.smiles, truncation=True, max_length=LONGEST)["input_ids"] for each in reactions]
        return [Text(*each) for each in zip(ids, read(self.finetune, ids), strict=True)]

    def _whole_delta(self, base: BertModel) -> dict[str, Tensor]:
        """The finetune's matrices beside the base's norms, biases and embeddings."""
        after = self.finetune.state_dict()
        matrices = {f"{name}.weight" for name in self.wanted.outputs}
        return {name: after[name] if name in matrices else each for name, each in base.state_dict().items()}

    def _plain(self, rank: int) -> PeftModel:
        """The base with the adapter of plain extraction."""
        written = self.models.folder / "adapters" / f"{self.name}-{rank}"
        if not written.exists():
            pair = self.models.encoder(BASE), self.models.encoder(self.name)
            deltarank.extract(*pair, output=written, rank=rank, server="peft", dtype="float32", **MATRICES)
        return load(self.models.encoder(BASE), written)

    def _descended(self, model: Any, name: str, rank: int, tokens: slice = ALL_TOKENS) -> Score:
        start = time.process_time()
        steps = descend(model, self.fit, self.choose, tokens, steps=self.steps, seed=0)
        return self._score(model, name, rank, steps=steps, seconds=time.process_time() - start)

    def _anchored(self, model: Any, rank: int) -> Score:
        """With the ridge that is best on the reactions that choose."""
        start, found = time.process_time(), []
        for ridge in RIDGES:
            fit_in_closed_form(model, self.wanted, self.finetune, ridge=ridge)
            found.append((error(model, self.choose), ridge, copied(model)))
        _, ridge, best = min(found, key=lambda each: each[0])
        set_factors(model, best)
        return self._score(model, "anchored", rank, ridge=ridge, seconds=time.process_time() - start)

    def _score(self, model: nn.Module, name: str, rank: int | None, **more: Any) -> Score:
        print(self.name, name, rank or "", file=sys.stderr, flush=True)
        found = read(model, [text.ids for text in self.score])
        squares = [(ours - text.expected).square().sum(1) for ours, text in zip(found, self.score, strict=True)]
        errors, of_first = (np.array(sums) for sums in _sums(squares))
        answers, classes = self.judge(torch.stack([each[0] for each in found]))
        return Score(name, rank, errors, of_first, answers, classes, **more)


def _sums(squares: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """Of the squares of the tokens of each reaction: the sum, and that of [CLS]."""
    return [float(each.sum()) for each in squares], [float(each[0]) for each in squares]


def nearest(labels: Tensor) -> Judge:
    """For fingerprints: the reaction whose fingerprint is nearest, and the class of that reaction."""

    def judge(fingerprints: Tensor) -> tuple[Tensor, Tensor]:
        distances = torch.cdist(fingerprints.double(), fingerprints.double()).fill_diagonal_(torch.inf)
        return distances.argmin(1), labels[distances.argmin(1)]

    return judge


def classified(models: Rxnfp) -> Judge:
    """For the classifier: the class that the finetune's own pooler and head read from the hidden state."""
    whole = models.classifier()

    @torch.no_grad()
    def judge(first: Tensor) -> tuple[Tensor, Tensor]:
        classes = whole.classifier(whole.bert.pooler(first[:, None])).argmax(1)
        return classes, classes

    return judge


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=Default.CALIBRATION_STEPS, help="(default: %(default)s)")
    parser.add_argument("--ranks", default=RANKS, help="separated by commas (default: %(default)s)")
    parser.add_argument("--finetunes", default=f"{FINGERPRINTS},{CLASSIFIER}", help="likewise (default: %(default)s)")
    options = parser.parse_args()
    models = Rxnfp(options.data / "rxnfp")
    steps, ranks = (2, [8]) if options.quick else (options.steps, [int(rank) for rank in options.ranks.split(",")])
    few = {"tokens": 2_000, "scored": SCORED_QUICK} if options.quick else {"tokens": 20_000, "scored": SCORED}
    parts = Parts.of(models.unseen_reactions(), models.tokenizer(), **few)
    labels = torch.tensor([each.label for each in parts.score])
    judges = {FINGERPRINTS: nearest(labels), CLASSIFIER: classified(models)}
    kept = f"{NAME}-quick" if options.quick else NAME
    for name in options.finetunes.split(","):
        lesson = Lesson(models, name, parts, judges[name], steps)
        rows = (_report.load(kept) or {}).get(name, {}).get("rows", {})
        for key, row in _rows(lesson, ranks, labels):
            rows[key] = row
            _report.save(kept, {**(_report.load(kept) or {}), name: {**_texts(lesson, labels), "rows": rows}})
    tables = [_table(name, known) for name, known in (_report.load(kept) or {}).items()]
    print("\n\n".join([_report.machine_line(), *tables]))


def _texts(lesson: Lesson, labels: Tensor) -> dict[str, Any]:
    """What was read, and how often the finetune itself is right."""
    texts = {"fit": lesson.fit, "choose": lesson.choose, "score": lesson.score}
    return {
        "documents": {part: len(of) for part, of in texts.items()},
        "tokens": {part: sum(len(text.ids) for text in of) for part, of in texts.items()},
        "right": _share(lesson.judged[1] == labels),
    }


def _rows(lesson: Lesson, ranks: Sequence[int], labels: Tensor) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of each model, as soon as they are there."""
    norms, of_first = (np.array(sums) for sums in _sums([text.expected.square().sum(1) for text in lesson.score]))
    beside: dict[int | None, Score] = {}
    for score in lesson.scores(ranks):
        plain = beside.setdefault(score.rank, score)  # the first of its rank, or the base
        yield (
            f"{score.rank} {score.model}",
            {
                "model": score.model,
                "rank": score.rank,
                "error": _ratio(score.errors, norms),
                "below": _ratio(plain.errors - score.errors, plain.errors),
                "first": _ratio(score.of_first, of_first),
                "same": _share(score.answers == lesson.judged[0]),
                "right": _share(score.classes == labels),
                "steps": score.steps,
                "ridge": score.ridge,
                "seconds": score.seconds,
            },
        )


def _share(found: Tensor) -> float:
    return float(found.double().mean())


def _ratio(above: np.ndarray[Any, Any], below: np.ndarray[Any, Any]) -> list[float | None]:
    """A ratio of sums over reactions, with its 95 % interval."""
    found: Interval = resample(np.stack([above, below], 1), seed=0).interval(lambda sums: sums[..., 0] / sums[..., 1])
    return [found.value, found.low, found.high]


def _table(name: str, known: dict[str, Any]) -> str:
    documents, tokens = known["documents"], known["tokens"]
    parts = ", ".join(f"{part} {documents[part]} ({tokens[part]:,} tokens)" for part in tokens)
    same, right = FIGURES[name]
    headers = ["adapter", "rank", "error / ||h*||^2", "95 % interval", "below plain", "[CLS] alone"]
    in_order = sorted(known["rows"].values(), key=lambda row: (row["rank"] or 0, ORDER.index(row["model"])))
    rows = [_row(row) for row in in_order]
    table = _report.table([*headers, same, right, "steps or ridge", "CPU seconds"], rows)
    return f"{name}: {parts}; {right} for the finetune itself: {percent(known['right'])}\n\n{table}"


def _row(row: dict[str, Any]) -> list[str]:
    value, low, high = row["error"]
    gain = [percent(each) for each in row["below"]]
    return [
        row["model"],
        str(row["rank"] or ""),
        figure(value),
        f"{figure(low)} to {figure(high)}",
        "" if row["model"] in ("base", "any rank", "plain") else f"{gain[0]} ({gain[1]} to {gain[2]})",
        figure(row["first"][0]),
        percent(row["same"]),
        percent(row["right"]),
        str(next((each for each in (row["steps"], row["ridge"]) if each is not None), "")),
        f"{row['seconds']:.0f}" if row["seconds"] else "",
    ]


if __name__ == "__main__":
    main()
