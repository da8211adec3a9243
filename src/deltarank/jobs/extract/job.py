"""What is to be made of two checkpoints, and what is known of it from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch

from deltarank.checkpoints import Checkpoint, Leftover, Pair, Pairing
from deltarank.errors import JobError
from deltarank.jobs.compare import compare
from deltarank.jobs.extract.assemble import nbytes_of
from deltarank.jobs.extract.layout import Layout, Other, lay_out
from deltarank.jobs.extract.options import Order, check_reach
from deltarank.jobs.extract.plan import ExtractionPlan, at_most
from deltarank.jobs.extract.staging import Staging
from deltarank.results import Outcome, Total, listing
from deltarank.runtime import Plan, Settings, Step, Watch, make_plan
from deltarank.spectra import factors_cost


@dataclass(frozen=True)
class Job:
    """Two checkpoints and what is to be made of them."""

    order: Order
    before: Checkpoint
    after: Checkpoint
    pairing: Pairing

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.order.stored_dtype(self.pairing)

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be equal for one process to go on with another's work."""
        return {
            "tool_version": version("deltarank"),
            "base": self.before.fingerprint,
            "finetune": self.after.fingerprint,
            "settings": self.order.to_plain(),
        }

    def lay_out(self, rank: int) -> Layout:
        """Raises JobError (slug "nothing-to-extract") if the server takes nothing of it."""
        asked = bool(self.order.settings.include)
        layout = lay_out(self.before, self.after, self.pairing, self.order.server, rank, asked=asked)
        if not layout.targets:
            read = [other for other in layout.others if other.pair is not None] or layout.others
            kinds = listing(sorted({other.reason for other in read if other.reason}), most=3)
            raise JobError(
                f"nothing is left to extract: {kinds}.",
                cure="Look at --include and --exclude, or choose another --server.",
                slug="nothing-to-extract",
            )
        if self.order.rank is not None:
            check_reach(layout)
        return layout

    def plan(self, layout: Layout) -> Plan:
        pairs = tuple(target.pair for target in layout.targets)
        others = tuple(_as_leftover(other) for other in layout.others if other.pair is not None)
        settings = replace(self.order.settings, ranks=(layout.rank,))
        rest = replace(self.pairing, pairs=pairs, leftovers=others)
        return make_plan(self.before, self.after, rest, settings, step=_factoring)

    def foretell(self) -> ExtractionPlan:
        """What `extract` would do, from headers alone."""
        layout = self.lay_out(at_most(self.order, self.lay_out(self.order.rank or 1).targets))
        searching = make_plan(self.before, self.after, self.pairing, self.order.settings).seconds
        return ExtractionPlan(
            order=self.order,
            layout=layout,
            work=self.plan(layout),
            dtype=str(self.dtype).removeprefix("torch."),
            adapter_bytes=nbytes_of(layout, self.dtype),
            searching=0.0 if self.order.rank else searching,
        )

    def fitting_rank(self, staging: Staging, watch: Watch) -> int:
        """Measures the loss at every legal rank, as `compare` does, and keeps what was measured."""
        order = self.order
        wanted = {target.pair.name for target in self.lay_out(1).targets}
        measured = compare(
            self.before.reference.ref,
            self.after.reference.ref,
            base_revision=self.before.reference.revision,
            revision=self.after.reference.revision,
            fetch="stream" if self.before.traffic or self.after.traffic else "auto",
            ranks=order.settings.ranks,
            solver="exact",
            device=order.settings.device,
            include=order.settings.include,
            exclude=order.settings.exclude,
            output=staging.side_run,
            watch=watch,
        )
        return order.fitting(Total.of(m for m in measured.matrices if m.name in wanted))


def _factoring(pair: Pair, settings: Settings) -> Step:
    """What making the factors of one matrix costs."""
    cost = factors_cost(*pair.shape, max(settings.ranks), settings.torch_device)
    return Step(pair, cost.way, cost.seconds, cost.memory)


def _as_leftover(other: Other) -> Leftover:
    pair = other.pair
    assert pair is not None
    if isinstance(pair, Leftover):
        return pair
    return Leftover(pair.name, Outcome.EXCLUDED, other.reason, pair.shape, pair.base, pair.finetune)
