"""What is to be made of two checkpoints, and what is known of it from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from deltarank.checkpoints import Checkpoint, Pair, Pairing, SummedTensor
from deltarank.errors import JobError
from deltarank.jobs.compare import CompareJob, CompareOptions
from deltarank.jobs.extract.assemble import nbytes_of
from deltarank.jobs.extract.layout import Layout, UnfactoredTensor, lay_out
from deltarank.jobs.extract.options import ExtractOptions, check_reach
from deltarank.jobs.extract.plan import ExtractionPlan, at_most
from deltarank.jobs.extract.staging import Staging
from deltarank.results import Outcome, Total, listing
from deltarank.runtime import Plan, ProgressListener, SolverOptions, Step, make_plan
from deltarank.spectra import factorisation_cost
from deltarank.system import tool_version


@dataclass(frozen=True)
class Job:
    """Two checkpoints and what is to be made of them."""

    options: ExtractOptions
    before: Checkpoint
    after: Checkpoint
    pairing: Pairing

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.options.stored_dtype(self.pairing)

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be equal for one process to go on with another's work."""
        return {
            "tool_version": tool_version(),
            "base": self.before.fingerprint,
            "finetune": self.after.fingerprint,
            "settings": self.options.to_plain(),
        }

    def lay_out(self, rank: int) -> Layout:
        """Raises JobError (slug "nothing-to-extract") if the server takes nothing of it."""
        asked = bool(self.options.settings.include)
        layout = lay_out(self.before, self.after, self.pairing, self.options.server, rank, asked=asked)
        if not layout.targets:
            read = [other for other in layout.unfactored if other.pair is not None] or layout.unfactored
            kinds = listing(sorted({other.reason for other in read if other.reason}), most=3)
            raise JobError(
                f"nothing is left to extract: {kinds}.",
                cure="Look at --include and --exclude, or choose another --server.",
                slug="nothing-to-extract",
            )
        if self.options.rank is not None:
            check_reach(layout)
        return layout

    def plan(self, layout: Layout) -> Plan:
        pairs = tuple(target.pair for target in layout.targets)
        unfactored = tuple(_as_leftover(other) for other in layout.unfactored if other.pair is not None)
        settings = replace(self.options.settings, ranks=(layout.rank,))
        rest = replace(self.pairing, pairs=pairs, summed=unfactored)
        return make_plan(self.before, self.after, rest, settings, step=_factoring)

    def foretell(self) -> ExtractionPlan:
        """What `extract` would do, from headers alone."""
        layout = self.lay_out(at_most(self.options, self.lay_out(self.options.rank or 1).targets))
        searching = make_plan(self.before, self.after, self.pairing, self.options.settings).seconds
        return ExtractionPlan(
            options=self.options,
            layout=layout,
            work=self.plan(layout),
            dtype=str(self.dtype).removeprefix("torch."),
            adapter_bytes=nbytes_of(layout, self.dtype),
            searching=0.0 if self.options.rank else searching,
        )

    def fitting_rank(self, staging: Staging, progress: ProgressListener) -> int:
        """Measures the loss at every servable rank, as `compare` does, and keeps what was measured."""
        options = self.options
        wanted = {target.pair.name for target in self.lay_out(1).targets}
        compared = CompareJob(self.before, self.after, CompareOptions(**vars(options.settings)))
        measured = compared.run(staging.side_run, progress=progress)
        return options.fitting(Total.of(m for m in measured.matrices if m.name in wanted))


def _factoring(pair: Pair, settings: SolverOptions) -> Step:
    """What making the factors of one matrix costs."""
    cost = factorisation_cost(*pair.shape, max(settings.ranks), settings.torch_device)
    return Step(pair, cost.way, cost.seconds, cost.memory)


def _as_leftover(other: UnfactoredTensor) -> SummedTensor:
    pair = other.pair
    assert pair is not None
    if isinstance(pair, SummedTensor):
        return pair
    return SummedTensor(pair.name, Outcome.EXCLUDED, other.reason, pair.shape, pair.base, pair.finetune)
