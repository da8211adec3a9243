"""An extraction from two open checkpoints: its plan, and its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deltarank.architectures import find_architecture
from deltarank.checkpoints import Checkpoint, Pair, Pairing, quoted
from deltarank.errors import JobError, UsageError
from deltarank.jobs.compare import CompareJob, CompareOptions
from deltarank.jobs.extract.layout import AdapterLayout
from deltarank.jobs.extract.layout_builder import LayoutBuilder
from deltarank.jobs.extract.load_check import PeftRefusals, TrialLoads
from deltarank.jobs.extract.module_names import ModuleNames
from deltarank.jobs.extract.options import ExtractOptions
from deltarank.jobs.extract.plan import ExtractionPlan
from deltarank.jobs.extract.result import ExtractedAdapter
from deltarank.jobs.extract.run import DrawBudget, ExtractRun
from deltarank.jobs.extract.staging import StagingFolder
from deltarank.results import Total, figure, listing
from deltarank.runtime import Plan, ProgressListener, SolverOptions, Step, make_plan
from deltarank.servers import Server, known_servers
from deltarank.spectra import factorisation_cost

_NO_MATRIX = "no matrix that gets a LoRA is among the tensors that were selected"


@dataclass(frozen=True)
class ExtractJob:
    """Two open checkpoints and the options of the extraction."""

    base: Checkpoint
    finetune: Checkpoint
    options: ExtractOptions

    @cached_property
    def comparison(self) -> CompareJob:
        """Measures the loss at every rank that may be chosen."""
        return CompareJob(self.base, self.finetune, CompareOptions(**vars(self.options.solver_options)))

    @cached_property
    def names(self) -> ModuleNames:
        base = self.pairing.base
        return ModuleNames(base, find_architecture(base, base.config or self.finetune.config))

    @property
    def pairing(self) -> Pairing:
        return self.comparison.pairing

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for one process to resume the work of another."""
        return {**self.comparison.identity, "settings": self.options.to_plain()}

    @cached_property
    def plan(self) -> ExtractionPlan:
        """What `run` would do; with `--rank auto`, at the largest rank that it may choose."""
        return self._plan_at(self.options.fixed_rank or self._largest_rank())

    def _plan_at(self, rank: int) -> ExtractionPlan:
        options, layout, dtype = self.options, self.layout(rank), self.options.factor_dtype(self.pairing)
        return ExtractionPlan(
            options=options,
            layout=layout,
            work=self._work(layout),
            dtype=str(dtype).removeprefix("torch."),
            adapter_bytes=layout.max_nbytes(dtype),
            rank_search_seconds=0.0 if options.fixed_rank else self.comparison.plan.work_seconds,
        )

    def _work(self, layout: AdapterLayout) -> Plan:
        """What is read and computed for the adapter."""
        pairs = tuple(target.pair for target in layout.targets)
        pairing = replace(self.pairing, pairs=pairs, summed=layout.summed)
        options = replace(self.options.solver_options, ranks=(layout.rank,))
        return make_plan(self.base, self.finetune, pairing, options, step=_factoring_step)

    def _largest_rank(self) -> int:
        """The smallest servable rank that holds every matrix whole; the largest, if none does."""
        largest = max((min(target.pair.shape) for target in self.layout(1).targets), default=1)
        ranks = self.options.solver_options.ranks
        return min((rank for rank in ranks if rank >= largest), default=max(ranks))

    def layout(self, rank: int) -> AdapterLayout:
        """What an adapter of this rank contains.

        Raises:
            JobError: (slug "nothing-to-extract") the server can load nothing of it; (slug "model-without-lora") it
                loads no LoRA on any model of this type.
            UsageError: (slug "rank-beyond-matrices") a smaller servable rank keeps every matrix whole.
        """
        options = self.options
        _check_model(options.rules, self.base.config)
        layout = TrialLoads(self.names, self.pairing.finetune).without(self._wanted_layout(rank), self._peft_refusals)
        if not layout.targets:
            readable = [tensor for tensor in layout.unfactored if tensor.pair is not None] or layout.unfactored
            reasons = sorted({tensor.reason for tensor in readable if tensor.reason})
            raise JobError(
                f"There is nothing to extract: {listing(reasons or [_NO_MATRIX], most=3)}.",
                cure="Check --include and --exclude, or choose another --server.",
                slug="nothing-to-extract",
            )
        if options.fixed_rank is not None:
            _check_rank_is_useful(layout)
        return layout

    def _wanted_layout(self, rank: int) -> AdapterLayout:
        """By the rules of the server alone."""
        sides = self.pairing.base, self.pairing.finetune
        selected_by_name = bool(self.options.include)
        builder = LayoutBuilder(*sides, self.options.rules, rank, self.names, selected_by_name=selected_by_name)
        return builder.build(self.pairing)

    @cached_property
    def _peft_refusals(self) -> PeftRefusals:
        """The same at every rank."""
        if not self.options.rules.includes_peft:
            return PeftRefusals({}, {})
        return TrialLoads(self.names, self.pairing.finetune).refusals(self._wanted_layout(self.options.fixed_rank or 1))

    def run(
        self, output: Path, *, force: bool = False, progress: ProgressListener, draw: DrawBudget | None = None
    ) -> ExtractedAdapter:
        """Writes the adapter, or resumes; see `deltarank.extract`.

        Args:
            draw: draws the picture of the model card; None: the card has a chart in text.
        """
        with StagingFolder(output, self.identity) as staging:
            if staging.is_finished and not force:
                progress.noted(f"{output} already contains this adapter: nothing to do. --force extracts it again.")
                return ExtractedAdapter.load(output)
            return self.begin(staging, force=force, progress=progress, draw=draw).adapter()

    def begin(
        self, staging: StagingFolder, *, force: bool, progress: ProgressListener, draw: DrawBudget | None = None
    ) -> ExtractRun:
        """The run, with what an earlier process finished. Nothing is read, unless the rank is to be found.

        Raises:
            JobError, OutputError: as `run`.
        """
        options = self.options
        staging.check_output(force=force)
        self.layout(options.fixed_rank or min(options.solver_options.ranks))  # refuse before anything is written
        records = staging.open(force=force)
        progress.writing(staging.output)
        plan = self._plan_at(options.fixed_rank or self._searched_rank(staging.rank_search, progress))
        staging.check_disk_space(2 * plan.adapter_bytes)
        run = ExtractRun(plan, self.names, self.pairing.finetune, staging, progress, draw)
        run.resume(records)
        return run

    def check_output(self, output: Path, *, force: bool = False) -> None:
        """Raises OutputError if `run` could not write there."""
        staging = StagingFolder(output, self.identity)
        if force or not staging.is_finished:
            staging.check(force=force, needed_bytes=2 * self.plan.adapter_bytes)

    def _searched_rank(self, folder: Path, progress: ProgressListener) -> int:
        """Measures the loss at every servable rank, as `compare` does, in a folder from which that is resumed."""
        options = self.options
        extracted = {target.pair.name for target in self.layout(1).targets}
        results = self.comparison.run(folder, progress=progress)
        rank = options.smallest_servable_rank(Total.of(m for m in results.matrices if m.name in extracted))
        progress.noted(
            f"Rank {rank} is the smallest servable rank with a relative error of at most {figure(options.max_error)}."
        )
        return rank


def _check_model(server: Server, config: Mapping[str, Any]) -> None:
    if server.refuses_model(config):
        refusing = [
            each for each in known_servers() if each.refuses_model(config) and not (each.is_portable or each.like)
        ]
        titles = [each.title for each in refusing] if server.is_portable else [server.title]
        loading = [f"--server {each.name}" for each in known_servers() if not each.refuses_model(config)]
        raise JobError(
            f"{listing(titles, most=4)} {'loads' if len(titles) == 1 else 'load'} no LoRA on models of the type "
            f"{quoted(str(config.get('model_type')))}"
            f"{', so there is no portable adapter for them' if server.is_portable else ''}.",
            cure=f"Choose the server that is meant: {listing(loading, most=6)}.",
            slug="model-without-lora",
        )


def _check_rank_is_useful(layout: AdapterLayout) -> None:
    largest = max(min(target.pair.shape) for target in layout.targets)
    enough = layout.server.slot_for(largest)
    if layout.rank > max(enough, largest):
        raise UsageError(
            f"Rank {layout.rank} is larger than needed: no matrix here has a rank above {largest}.",
            cure=f"Use --rank {enough}: it keeps the whole change of these matrices.",
            slug="rank-beyond-matrices",
        )


def _factoring_step(pair: Pair, options: SolverOptions) -> Step:
    """The cost of factoring one matrix."""
    cost = factorisation_cost(*pair.shape, max(options.ranks), options.torch_device)
    return Step(pair, cost.method, cost.seconds, cost.memory)
