"""What was reached: base, plain, calibrated and the whole delta, scored on documents that neither fitted nor chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltarank.checkpoints import Checkpoint, Pairing
from deltarank.divergence import read_json_lines, resample
from deltarank.jobs.extract import ExtractedAdapter, ExtractionPlan
from deltarank.jobs.outputs import OutputsJob, OutputsOptions, lora_matrices
from deltarank.results import CalibrationScore, Logits, Outcome, Outputs
from deltarank.runtime import PartOfJob, ProgressListener

LARGER_RANKS = 3
"""How many larger ranks of plain extraction are scored, to find the one that is as near."""

MODELS = 5
"""That read the texts: the finetune, the base, and these three."""

_BASE, _ANY_RANK, _PLAIN, _CALIBRATED = "base", "any rank", "plain", "calibrated"

_WORDS = {
    "finetune": "the finetune",
    _BASE: "the base",
    _ANY_RANK: "the difference at any rank",
    _PLAIN: "plain extraction",
    _CALIBRATED: "the calibrated adapter",
}
"""In the progress."""


@dataclass(frozen=True)
class Candidates:
    """What is scored, and on what.

    adapters           the folder that contains the adapters "plain" and "calibrated"
    rank               of the adapters
    larger_ranks       of plain extraction, which are scored if one of them may be as near as the calibrated adapter
    texts              the held-out documents, then the other text
    has_all_matrices   whether the adapter carries the matrices that every LoRA has factors for, and nothing else. Only
                       then the larger ranks, and the whole delta in these matrices, are what plain extraction gives
    """

    pair: tuple[Checkpoint, Checkpoint]
    adapters: Path
    rank: int
    larger_ranks: tuple[int, ...]
    texts: Sequence[Path]
    has_all_matrices: bool
    device: str
    seed: int

    def of_adapters(self) -> tuple[OutputsJob, list[str]]:
        """The job that scores the adapters, and the names of what it scores."""
        names = [_BASE, *([_ANY_RANK] if self.has_all_matrices else []), _PLAIN, _CALIBRATED]
        return self._job((self.rank,), (_PLAIN, _CALIBRATED)), names

    def of_larger_ranks(self) -> tuple[OutputsJob, list[str]]:
        return self._job(self.larger_ranks, ()), [_BASE, *(f"rank {rank}" for rank in self.larger_ranks)]

    def _job(self, ranks: tuple[int, ...], adapters: Sequence[str]) -> OutputsJob:
        options = OutputsOptions(
            ranks=ranks,
            device=self.device,
            adapters=tuple(str(self.adapters / name) for name in adapters),
            texts=tuple(map(str, self.texts)),
            samples=0,
            seed=self.seed,
        )
        return OutputsJob(*self.pair, options)


class _Scoring(PartOfJob):
    """With words for what is scored."""

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        super().finished(_in_words(name), seconds_left, share_done)

    def began(self, name: str) -> None:
        super().began(_in_words(name))


class _Quiet(_Scoring):
    """Without the warnings on the inputs, which were given when they were scored before."""

    def warned(self, sentence: str) -> None:
        pass


class _WithoutKnown(_Scoring):
    """Without the warnings on the tokenizers, which were given before the work began."""

    def __init__(self, job: OutputsJob, whole: ProgressListener, *, before: float) -> None:
        super().__init__(whole, before=before, seconds=job.plan.seconds)
        self._known = job.plan.inputs.notes

    def warned(self, sentence: str) -> None:
        if sentence not in self._known:
            super().warned(sentence)


@dataclass(frozen=True)
class Evaluation:
    """The outputs of all candidates on the held-out documents and on the other text.

    larger   of the larger ranks, if they were scored
    """

    candidates: Candidates
    outputs: Outputs
    larger: Outputs | None = None

    @classmethod
    def measure(cls, candidates: Candidates, folder: Path, progress: ProgressListener, *, before: float) -> Evaluation:
        """Scores them as `outputs` does, which resumes.

        Args:
            folder: for what the scoring stores.
            before: seconds that are planned for what comes before.
        """
        job, names = candidates.of_adapters()
        part = _WithoutKnown(job, progress, before=before)
        adapters = cls(candidates, job.measure(folder / "adapters", only=names, progress=part))
        if not adapters.needs_larger_ranks:
            return adapters
        before += job.plan.seconds
        job, names = candidates.of_larger_ranks()
        quiet = _Quiet(progress, before=before, seconds=job.plan.seconds)
        return replace(adapters, larger=job.measure(folder / "ranks", only=names, progress=quiet))

    @property
    def needs_larger_ranks(self) -> bool:
        """Whether one of them may be as near as the calibrated adapter: the whole delta is, and plain is not."""
        score = self.held_out
        if score.kld_any_rank is None or not self.candidates.larger_ranks:
            return False
        return score.kld_any_rank <= score.kld_calibrated < score.kld_plain

    @property
    def held_out(self) -> CalibrationScore:
        return self._score(0)

    @property
    def other_text(self) -> CalibrationScore:
        return self._score(1)

    @property
    def rank_equivalent(self) -> int | None:
        """The smallest rank of plain extraction that was scored and is as near on the held-out documents."""
        if not self.candidates.has_all_matrices:
            return None
        score, text = self.held_out, self.outputs.texts[0].name
        if score.kld_plain <= score.kld_calibrated:
            return self.candidates.rank
        larger = self.larger.candidates if self.larger else ()
        klds = {each.rank: on.kld.mean for each in larger for on in each.logits if each.rank and on.text == text}
        return min((rank for rank, kld in klds.items() if kld <= score.kld_calibrated), default=None)

    def _score(self, number: int) -> CalibrationScore:
        """On the text of this number."""
        text = self.outputs.texts[number].name
        base, plain, calibrated = (self._logits(name, text) for name in (_BASE, _PLAIN, _CALIBRATED))
        sums = sums_by_group(calibrated, plain, self.candidates.texts[number])
        totals = resample(sums, seed=self.candidates.seed)
        kld = totals.interval(lambda sums: sums[..., 0] / sums[..., 2])
        gain = totals.interval(lambda sums: 1 - sums[..., 0] / sums[..., 1]) if plain.kld.mean > 0 else None
        return CalibrationScore(
            documents=calibrated.documents,
            groups=len(sums),
            tokens=calibrated.tokens,
            kld_base=base.kld.mean,
            kld_plain=plain.kld.mean,
            kld_any_rank=self._logits(_ANY_RANK, text).kld.mean if self.candidates.has_all_matrices else None,
            kld_calibrated=calibrated.kld.mean,
            low=kld.low,
            high=kld.high,
            same_top_plain=plain.same_top_p.value,
            same_top_calibrated=calibrated.same_top_p.value,
            gain=gain.value if gain else None,
            gain_low=gain.low if gain else None,
            gain_high=gain.high if gain else None,
        )

    def _logits(self, name: str, text: str) -> Logits:
        candidate = next(each for each in self.outputs.candidates if each.name == name)
        return next(each for each in candidate.logits if each.text == text)


def sums_by_group(calibrated: Logits, plain: Logits, text: Path) -> NDArray[np.float64]:
    """(groups, 3): the nats of calibrated and of plain, and the tokens, of documents that belong together.

    Those are answers to one prompt, and parts of one text. They are alike, so that an interval over documents would be
    too narrow.

    Args:
        text: the .jsonl file that both were scored on. A record may have a "group".
    """
    group_of = {name: record.get("group", name) for name, record in read_json_lines(text)}
    sums: dict[Any, list[float]] = {}
    for ours, theirs in zip(calibrated.by_document, plain.by_document, strict=True):
        name = ours.name if ours.name in group_of else ours.name.rpartition(" (")[0]  # a part of a line
        nats = ours.tokens * ours.kld, theirs.tokens * theirs.kld, float(ours.tokens)
        known = sums.setdefault(group_of[name], [0.0] * len(nats))
        known[:] = (a + b for a, b in zip(known, nats, strict=True))
    return np.array(list(sums.values()))


def carries_all_matrices(plan: ExtractionPlan, plain: ExtractedAdapter, pairing: Pairing) -> bool:
    """Whether an adapter has the matrices that every LoRA has factors for, and nothing else.

    Args:
        plain: one of its matrices may have failed, as where the squares of its numbers overflow.
        pairing: of the whole checkpoints, without --include and --exclude.
    """
    whole = any(tensor.whole_module or tensor.bias_of for tensor in plan.layout.unfactored)
    targets = {target.pair.name for target in plan.layout.targets}
    failed = any(each.outcome not in (Outcome.MEASURED, Outcome.IDENTICAL) for each in plain.matrices)
    return not whole and not failed and targets == {pair.name for pair in lora_matrices(pairing.pairs)}


def _in_words(name: str) -> str:
    """What of the scoring is under way: a model, or plain extraction at a rank."""
    if name.startswith("rank "):
        return f"scoring plain extraction at {name}"
    return f"scoring {_WORDS[name]}" if name in _WORDS else name


def larger_ranks(rank: int, servable: Sequence[int], largest: int) -> tuple[int, ...]:
    """A few of those that a matrix can have."""
    return tuple(each for each in servable if rank < each < largest)[:LARGER_RANKS]
