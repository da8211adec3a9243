"""An adapter on two checkpoints: every tensor measured, in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol, TypeVar

from deltarank.adapters import Applied, LoraAdapter, PartKind, Unloaded, UnusedTensor, apply_adapter
from deltarank.checkpoints import Checkpoint, Pairing, hub_ids, other_base_note, pair_checkpoints, quoted
from deltarank.jobs.verify.measure import FitMeasurer, FitTask, Target, new_bias_row, parallel_tensors
from deltarank.jobs.verify.merge_measure import MergeMeasurer
from deltarank.jobs.verify.uncounted import uncounted
from deltarank.results import MergedTensor, Skipped, TensorFit, Unpaired
from deltarank.runtime import READ_RATE, ProgressListener, SolverOptions, TimeEstimate, Worker, matrix_pass

_ONE_SIDED = "only one of the checkpoints has a bias there, so its change is not compared"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Row = TypeVar("_Row", bound=_Named)


class VerifyJob:
    """An open adapter on an open pair of checkpoints."""

    def __init__(
        self,
        adapter: LoraAdapter,
        base: Checkpoint,
        finetune: Checkpoint,
        server: str | None,
        options: SolverOptions,
    ) -> None:
        self._adapter, self._base, self._options = adapter, base, options
        self._pairing: Pairing = pair_checkpoints(base, finetune, experts=True)
        shared: tuple[Target, ...] = (*self._pairing.pairs, *self._pairing.summed)
        self._applied: Applied = apply_adapter(adapter, shared, server=server, base=base)
        known = {target.name for target in shared}
        self._targets: tuple[Target, ...] = (*shared, *(x for x in self._applied.untied if x.name not in known))
        self._one_sided = {each.name for each in self._pairing.skipped}
        self._new_biases = [bias for bias in self._applied.biases if not adapter.is_padding(bias.part.up.name)]

    def fits(self, progress: ProgressListener) -> tuple[TensorFit, ...]:
        """A row for each tensor that both checkpoints have, in their order, then for each bias that neither has."""
        rows = self._rows(partial(FitMeasurer, self._adapter, self._applied.changes, self._options), progress)
        new = [
            new_bias_row(self._adapter, bias) for bias in self._new_biases if bias.part.tensor not in self._one_sided
        ]
        return (*rows, *new)

    def merges(self, progress: ProgressListener) -> tuple[MergedTensor, ...]:
        """A row for each tensor that both checkpoints have, in their order."""
        return self._rows(partial(MergeMeasurer, self._adapter, self._applied.changes, self._options), progress)

    def _rows(self, make_worker: Callable[[], Worker[FitTask, _Row]], progress: ProgressListener) -> tuple[_Row, ...]:
        rows = {
            row.name: row
            for row in matrix_pass(
                [[FitTask(target)] for target in self._targets],
                make_worker,
                seconds=lambda task: task.pair.nbytes / READ_RATE,
                workers=parallel_tensors(self._targets, self._options.torch_device),
                device=self._options.torch_device,
                progress=progress,
                estimate=TimeEstimate(progress, math.fsum(each.nbytes / READ_RATE for each in self._targets)),
            )
        }
        return tuple(rows[target.name] for target in self._targets)

    @property
    def applied(self) -> Applied:
        """What the adapter changes in the tensors of the base."""
        return self._applied

    @property
    def unloaded(self) -> Unloaded | None:
        """The LoRAs of the file that its reader does not load."""
        return self._applied.unloaded

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The tensors that could not be compared."""
        return self._pairing.skipped

    def unpaired(self, rows: Sequence[TensorFit] | Sequence[MergedTensor]) -> Unpaired:
        """The matrices of either checkpoint without a counterpart, and the tensors that could not be compared."""
        return self._pairing.unpaired({row.name for row in rows if not row.is_compared})

    def ignored(self) -> list[UnusedTensor]:
        """The tensors of the adapter's file that change nothing that is compared."""
        one_sided = [bias.part for bias in self._new_biases if bias.part.tensor in self._one_sided]
        biases = [UnusedTensor(part.up.name, _ONE_SIDED) for part in one_sided]
        return [entry for entry in (*self._applied.unused, *biases) if not self._adapter.is_padding(entry.name)]

    def notes(self, rows: Sequence[TensorFit] | None = None) -> tuple[str, ...]:
        """`rows`: of which those that no figure includes are listed."""
        return (
            *self._applied.notes,
            *self._resized_vocabularies(),
            *self._other_base(),
            *(() if rows is None else uncounted(rows, self._pairing.skipped)),
            *self._pairing.notes,
        )

    def _other_base(self) -> Iterator[str]:
        if note := other_base_note(self._base, hub_ids([self._adapter.config.base]), "adapter_config.json"):
            yield note

    def _resized_vocabularies(self) -> Iterator[str]:
        for change in (change for changes in self._applied.changes.values() for change in changes):
            part, tensor = change.placement.part, change.placement.target.base.tensor
            known = self._base.tensors.get(tensor)
            ours, theirs = part.up.shape, known.shape if known else ()
            if part.kind is PartKind.WHOLE and len(ours) == len(theirs) == 2 and ours[0] > theirs[0]:
                yield (
                    f"{quoted(part.tensor)} has {ours[0]:,} rows in the adapter and {theirs[0]:,} in the "
                    "base: PEFT loads it only after the base's vocabulary is resized (resize_token_embeddings)"
                )
