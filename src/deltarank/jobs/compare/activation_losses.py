"""What the rank-r deltas lose of the products D x, matrix by matrix, for the inputs that a calibration text gives.

x are the inputs in the *finetune*: if one matrix W is replaced by W0 + D_r there, its output changes by exactly
(D - D_r) x.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltarank.activations import MatrixInputs, RunningModel
from deltarank.checkpoints import Pair, Prefetcher
from deltarank.jobs.compare.calibrated_plan import ActivationPlan
from deltarank.jobs.compare.options import CompareOptions
from deltarank.results import ActivationLoss, MatrixResult, count, listing
from deltarank.runtime import TENSOR_FAILURES, DeltaReader, ProgressListener, TimeEstimate
from deltarank.spectra import factorise, weighted_errors


@dataclass(frozen=True)
class ActivationLosses:
    """The second half of a comparison with a calibration text.

    matrices  the results so far, by name; those that have their losses of the weights take part
    """

    plan: ActivationPlan
    options: CompareOptions
    matrices: Mapping[str, MatrixResult]
    progress: ProgressListener

    def measure(self) -> Iterator[tuple[str, ActivationLoss]]:
        """The name and the loss of each matrix that has none yet. Each pass of the plan reads the whole text."""
        passes = [waiting for pairs in self.plan.passes if (waiting := [*filter(self._is_waiting, pairs)])]
        if not passes:
            return
        estimate = TimeEstimate(self.progress, self.plan.seconds)
        self.progress.began("the finetune")
        model = self.plan.model.load()
        for pairs in passes:
            yield from self._measure_all(pairs, self._read(model, pairs, estimate), estimate)

    def notes(self) -> list[str]:
        """What is not measured, after `measure`."""
        missing = [name for name, matrix in self.matrices.items() if matrix.has_losses and not matrix.activation_loss]
        if not missing:
            return []
        number = count(len(missing), "matrix", "matrices")
        note = (
            f"the activation-weighted loss of {number} is not measured ({listing(missing, most=2)}): no product with "
            "the matrix as it is stored was seen while the finetune ran"
        )
        return [note]

    def _is_waiting(self, pair: Pair) -> bool:
        matrix = self.matrices[pair.name]
        return matrix.has_losses and matrix.activation_loss is None

    def _read(self, model: RunningModel, pairs: Sequence[Pair], estimate: TimeEstimate) -> Mapping[str, MatrixInputs]:
        """The inputs of these matrices."""
        name = f"the finetune reads {self.plan.text.name}"
        self.progress.began(name)
        per_token = self.plan.seconds_per_pass / self.plan.text.tokens
        return model.inputs(pairs, self.plan.text, lambda tokens: estimate.add(name, per_token * tokens))

    def _measure_all(
        self, pairs: Sequence[Pair], inputs: Mapping[str, MatrixInputs], estimate: TimeEstimate
    ) -> Iterator[tuple[str, ActivationLoss]]:
        reader, prefetcher = DeltaReader(self.options), Prefetcher(pairs)
        for number, pair in enumerate(pairs):
            prefetcher.reached(number)
            self.progress.began(pair.name)
            found = inputs.get(pair.name)
            loss = None if found is None else self._loss(pair, found, reader)
            if loss is not None:
                yield pair.name, loss
            estimate.add(pair.name, self.plan.matrix_seconds(pair))

    def _loss(self, pair: Pair, inputs: MatrixInputs, reader: DeltaReader) -> ActivationLoss | None:
        """None if the matrix cannot be read or computed."""
        ranks = self.options.ranks
        try:
            delta, sums = reader.read(pair)
            if sums.is_zero or not inputs.grams:
                return ActivationLoss.from_sums(inputs.tokens, 0.0, [0.0] * len(ranks))
            factors = factorise(delta, max(ranks), energy=sums.energy, workspace=reader.workspace)
            energy, errors = weighted_errors(delta, factors, inputs.grams, ranks)
        except TENSOR_FAILURES:
            return None
        return ActivationLoss.from_sums(inputs.tokens, energy, errors)
