"""The models that a host may serve in the finetune's place, made as `outputs` makes its candidates, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import torch

from deltarank.adapters import open_adapter
from deltarank.checkpoints import Checkpoint
from deltarank.divergence import Tokenizer
from deltarank.jobs.outputs.candidate_names import BASE, adapter_names, rank_name
from deltarank.jobs.outputs.candidates import Candidate, CandidateSet
from deltarank.jobs.outputs.loaded_model import LoadedModel, ModelLoader
from deltarank.jobs.outputs.low_rank import LowRankDeltas, MatrixDecomposition, decompose, lora_matrices
from deltarank.jobs.outputs.model_pair import ModelPair, most_used_dtype
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.jobs.outputs.partial_folder import PartialFolder
from deltarank.jobs.outputs.planned_memory import PlannedMemory
from deltarank.models import get_yardstick, load_tokenizer_of
from deltarank.results import FINETUNE, CandidateKind
from deltarank.runtime import (
    Plan,
    ProgressListener,
    SolverOptions,
    TimeEstimate,
    available_memory,
    make_plan,
)


class ServedModels:
    """Base, base + D_r at each rank of the options, adapters, the finetune, and the finetune quantised.

    Args:
        folder: where the factors of D_r are kept as long as this is open.

    Raises:
        CheckpointError, PairingError, AdapterError, UsageError, JobError: the models are no pair, cannot be run, or an
            adapter or a format cannot be used.
    """

    def __init__(
        self,
        base: Checkpoint,
        finetune: Checkpoint,
        options: OutputsOptions,
        folder: Path,
        *,
        fetch: str,
        progress: ProgressListener,
    ) -> None:
        self.options = options.with_dtype(most_used_dtype(finetune))
        self.models = ModelPair.of(base, finetune, self.options)
        self.tokenizer: Tokenizer = load_tokenizer_of(self.models.finetune_skeleton)
        self._check_inputs()
        self._files, self._fetch, self._progress = PartialFolder(folder), fetch, progress
        self._open = ExitStack()
        self._set: CandidateSet | None = None

    def _check_inputs(self) -> None:
        for name in self.options.yardsticks:
            get_yardstick(name)
        for folder in self.options.adapters:
            with open_adapter(folder) as lora:
                self.models.apply_adapter(lora, self.options.server)

    def __enter__(self) -> ServedModels:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()
        self._files.remove()

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Those of the options that are lower than a side of some matrix: beyond, D_r is all of D."""
        sides = [min(pair.shape) for pair in lora_matrices(self.models.pairing.pairs)]
        return tuple(rank for rank in self.options.ranks if rank < max(sides, default=0))

    @cached_property
    def names(self) -> tuple[str, ...]:
        ranks, adapters = map(rank_name, self.ranks), adapter_names(self.options)
        return (BASE, *ranks, *adapters, FINETUNE, *self.options.yardsticks)

    def load(self, name: str) -> LoadedModel:
        """The model of this name. Use it in a `with`, and one at a time."""
        return LoadedModel(self._candidate(name), self._loader)

    def kind(self, name: str) -> CandidateKind:
        return self._candidate(name).kind

    def rank(self, name: str) -> int | None:
        return self._candidate(name).rank

    def _candidate(self, name: str) -> Candidate:
        """The finetune is of the kind "model" here: a checkpoint like any other."""
        if name == FINETUNE:
            return Candidate(
                FINETUNE, CandidateKind.MODEL, self.models.finetune_skeleton, self.models.finetune_weights()
            )
        return self._made[name]

    @cached_property
    def _made(self) -> dict[str, Candidate]:
        options = replace(self.options, ranks=self.ranks or self.options.ranks)
        candidates = self._open.enter_context(
            CandidateSet(self.models, self._decompose(), options, truncated_rank=None, fetch=self._fetch)
        )
        return {each.name: each for each in candidates.of_names([name for name in self.names if name != FINETUNE])}

    def _decompose(self) -> LowRankDeltas:
        pairs = {pair.name: pair for pair in lora_matrices(self.models.pairing.pairs)}
        numbers = {name: number for number, name in enumerate(pairs)}
        found: dict[str, MatrixDecomposition] = {}
        if self.ranks:
            self._files.path.mkdir(parents=True, exist_ok=True)
            plan, options = self._plan, self._solver_options
            estimate = TimeEstimate(self._progress, plan.work_seconds)
            results = decompose(
                plan.steps,
                options,
                max(self.ranks),
                self._factor_file(numbers),
                progress=self._progress,
                estimate=estimate,
            )
            found = {each.matrix: each for each in results}
        return LowRankDeltas(pairs, found, self._factor_file(numbers), self._device)

    def _factor_file(self, numbers: dict[str, int]) -> Callable[[str], Path]:
        return lambda name: self._files.factors(numbers[name])

    @cached_property
    def _solver_options(self) -> SolverOptions:
        return SolverOptions(ranks=self.ranks or self.options.ranks, device=self.options.device)

    @cached_property
    def _plan(self) -> Plan:
        pairing = replace(self.models.pairing, pairs=lora_matrices(self.models.pairing.pairs), summed=())
        return make_plan(self.models.base, self.models.finetune, pairing, self._solver_options)

    @property
    def _device(self) -> torch.device:
        return self.options.torch_device

    @cached_property
    def memory(self) -> PlannedMemory:
        """Of one model."""
        largest = max((info.entries for info in self.models.finetune.tensors.values()), default=0)
        available = available_memory(self._device)
        return PlannedMemory(self.models.finetune_skeleton, self.options.torch_dtype, self._device, largest, available)

    @cached_property
    def _loader(self) -> ModelLoader:
        def on_loaded(name: str, /, *, resumed: bool) -> None:
            self._progress.began(name)

        return ModelLoader(self._device, self.options.torch_dtype, self.memory.must_stream, on_loaded)
