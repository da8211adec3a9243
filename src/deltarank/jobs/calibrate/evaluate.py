"""What was reached: base, plain, calibrated and the whole delta, scored on documents that neither fitted nor chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltarank.checkpoints import Checkpoint, Pairing
from deltarank.divergence import resample
from deltarank.jobs.extract import ExtractionPlan
from deltarank.jobs.outputs import OutputsJob, OutputsOptions, lora_matrices
from deltarank.results import CalibrationScore, CandidateKind, Interval, Logits, Outputs
from deltarank.runtime import ProgressListener

LARGER_RANKS = 3
"""How many larger ranks of plain extraction are scored, to find the one that is as near."""

_PLAIN, _CALIBRATED = "plain", "calibrated"


@dataclass(frozen=True)
class Evaluation:
    """The outputs of all candidates on the held-out documents and on the other text.

    has_all_matrices   whether the adapter carries the matrices that every LoRA has factors for, and nothing else. Only
                       then the larger ranks, and the whole delta in these matrices, are what plain extraction gives
    """

    outputs: Outputs
    seed: int
    has_all_matrices: bool

    @classmethod
    def measure(
        cls,
        pair: tuple[Checkpoint, Checkpoint],
        adapters: Path,
        texts: Sequence[Path],
        ranks: Sequence[int],
        *,
        device: str,
        seed: int,
        has_all_matrices: bool,
        folder: Path,
        progress: ProgressListener,
    ) -> Evaluation:
        """Scores them as `outputs` does, which resumes.

        Args:
            adapters: the folder that contains the adapters "plain" and "calibrated".
            texts: the held-out documents, then the other text.
            ranks: of plain extraction, to be scored beside the adapters.
            folder: for what the scoring stores.
        """
        options = OutputsOptions(
            ranks=tuple(ranks),
            device=device,
            adapters=(str(adapters / _PLAIN), str(adapters / _CALIBRATED)),
            texts=tuple(map(str, texts)),
            samples=0,
            seed=seed,
        )
        outputs = OutputsJob(*pair, options).measure(folder, progress=progress)
        return cls(outputs, seed, has_all_matrices)

    @property
    def held_out(self) -> CalibrationScore:
        return self._score(self.outputs.texts[0].name)

    @property
    def other_text(self) -> CalibrationScore:
        return self._score(self.outputs.texts[1].name)

    @property
    def rank_equivalent(self) -> int | None:
        """The smallest rank of plain extraction that was scored and is as near on the held-out documents."""
        if not self.has_all_matrices:
            return None
        text = self.outputs.texts[0].name
        reached = self._logits(_CALIBRATED, text).kld.mean
        plain = [each for each in self.outputs.candidates if each.kind is CandidateKind.RANK and each.rank is not None]
        near = [each.rank for each in plain if self._logits(each.name, text).kld.mean <= reached]
        return min(filter(None, near), default=None)

    def _score(self, text: str) -> CalibrationScore:
        base, plain, whole, calibrated = (
            self._logits(name, text) for name in ("base", _PLAIN, "any rank", _CALIBRATED)
        )
        gain = _gain(calibrated, plain, self.seed)
        return CalibrationScore(
            documents=calibrated.documents,
            tokens=calibrated.tokens,
            kld_base=base.kld.mean,
            kld_plain=plain.kld.mean,
            kld_any_rank=whole.kld.mean if self.has_all_matrices else None,
            kld_calibrated=calibrated.kld.mean,
            low=calibrated.kld.low,
            high=calibrated.kld.high,
            gain=gain.value if gain else None,
            gain_low=gain.low if gain else None,
            gain_high=gain.high if gain else None,
        )

    def _logits(self, name: str, text: str) -> Logits:
        candidate = next(each for each in self.outputs.candidates if each.name == name)
        return next(each for each in candidate.logits if each.text == text)


def _gain(calibrated: Logits, plain: Logits, seed: int) -> Interval | None:
    """1 - KLD(calibrated) / KLD(plain), bootstrapped over documents, which both were scored on."""
    if plain.kld.mean <= 0:
        return None
    nats = [
        (ours.tokens * ours.kld, theirs.tokens * theirs.kld)
        for ours, theirs in zip(calibrated.by_document, plain.by_document, strict=True)
    ]
    return resample(np.array(nats), seed=seed).interval(lambda sums: 1 - sums[..., 0] / sums[..., 1])


def carries_all_matrices(plan: ExtractionPlan, pairing: Pairing) -> bool:
    """Whether an adapter has the matrices that every LoRA has factors for, and nothing else."""
    whole = any(tensor.whole_module or tensor.bias_of for tensor in plan.layout.unfactored)
    targets = {target.pair.name for target in plan.layout.targets}
    return not whole and targets == {pair.name for pair in lora_matrices(pairing.pairs)}


def ranks_to_score(rank: int, servable: Sequence[int], largest: int) -> tuple[int, ...]:
    """The rank itself and a few of the larger ones that a matrix can have."""
    larger = [each for each in servable if rank < each < largest]
    return (rank, *larger[:LARGER_RANKS])
