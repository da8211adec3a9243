"""Base, finetune and an adapter in; what the adapter really does to the base out."""

from __future__ import annotations

import math
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime

import torch

from deltarank.adapters import (
    Applied,
    Change,
    LoadEffect,
    LoraAdapter,
    LoraUpdate,
    NewBias,
    PartKind,
    UnusedTensor,
    apply_adapter,
    open_adapter,
    open_finetune,
)
from deltarank.checkpoints import (
    Checkpoint,
    Pair,
    Prefetcher,
    SummedTensor,
    interrupt_reads,
    open_checkpoint,
    pair_checkpoints,
    shown,
)
from deltarank.errors import CheckpointError
from deltarank.jobs.verify.overlap import overlap
from deltarank.jobs.verify.verdict import NEW_BIAS, judge_fit, uncounted
from deltarank.results import FitEnergies, IgnoredTensor, Outcome, TensorChange, TensorFit, Verification
from deltarank.runtime import FIXED_MEMORY, PROMISED_MEMORY, ProgressListener, SolverOptions
from deltarank.servers import PEFT, get_server
from deltarank.spectra import Sums, Workspace, choose_solver, make_solver, measure_spectrum, noise_edge
from deltarank.system import tool_version

__all__ = ["verify"]

Ref = str | os.PathLike[str]
Target = Pair | SummedTensor

TOLERANCE = 1e-5
"""Of the best possible, in cosine distance: so that "within 0.01 % of optimal" can be said."""

_ONE_SIDED = "one of the checkpoints alone has a bias there, so what it changes is not compared"

MOST_ENTRIES = 1 << 29
"""A larger matrix is not held whole (2 GiB in float32), so how much the best LoRA keeps of it is not computed."""


def verify(
    base: Ref,
    finetune: Ref,
    adapter: Ref,
    *,
    server: str | None = None,
    base_revision: str | None = None,
    revision: str | None = None,
    adapter_revision: str | None = None,
    fetch: str = "auto",
    device: str = "cpu",
    progress: ProgressListener | None = None,
) -> Verification:
    """Measures what a LoRA on disk makes of the base: ||W - (W0 + L)||^2, tensor by tensor, beside the least possible.

    Args:
        base, finetune, fetch: as for `deltarank.compare`.
        adapter: a folder with adapter_config.json and adapter_model.safetensors, whoever wrote it; or a Hub id.
        server: "vllm", "sglang", "lorax", "llama.cpp": as that server would apply it; "portable": as none of them
            refuses it; "peft" or None: as PEFT does.
        progress: is told how it goes.

    Raises:
        UsageError: an argument cannot be meant.
        AdapterError: the adapter cannot be read, is refused by the server, or is of another base.
        CheckpointError, PairingError: see `deltarank.errors`.
    """
    rules = get_server(server or PEFT)
    settings = SolverOptions(ranks=(1,), tolerance=TOLERANCE, device=device)
    progress = progress or ProgressListener()
    with ExitStack() as stack:
        lora = stack.enter_context(open_adapter(adapter, revision=adapter_revision))
        before = stack.enter_context(open_checkpoint(base, revision=base_revision, fetch=fetch, on_note=progress.noted))
        after = stack.enter_context(
            open_finetune(finetune, before, revision=revision, fetch=fetch, on_note=progress.noted)
        )
        pairing = pair_checkpoints(before, after, experts=True)
        targets: tuple[Target, ...] = (*pairing.pairs, *pairing.summed)
        applied = apply_adapter(lora, targets, server=server, config=before.config)
        alone = {each.name for each in pairing.skipped}
        biases = [bias for bias in applied.biases if not lora.is_padding(bias.part.up.name)]
        rows = _Scales(lora, applied, settings, progress).weigh(targets)
        rows += tuple(_new_bias(lora, bias) for bias in biases if bias.part.tensor not in alone)
        one_sided = [UnusedTensor(bias.part.up.name, _ONE_SIDED) for bias in biases if bias.part.tensor in alone]
        ignored = [entry for entry in (*applied.unused, *one_sided) if not lora.is_padding(entry.name)]
        unused = tuple(IgnoredTensor(entry.name, entry.reason) for entry in ignored)
        kind, sentences = judge_fit(
            rows,
            unused,
            [entry for entry in ignored if entry.effect is not LoadEffect.NONE],
            name=lora.reference.short_name,
            server=rules.title if server else None,
            made_for=lora.config.base,
        )
        return Verification(
            base=before.reference,
            finetune=after.reference,
            adapter=lora.reference,
            server=server,
            tensors=rows,
            unused=unused,
            notes=(*applied.notes, *_longer(applied, before), *uncounted(rows, pairing.skipped), *pairing.notes),
            kind=kind,
            sentences=sentences,
            tool_version=tool_version(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


class _Scales:
    """Weighs tensors, two at a time where memory allows it, a thread each. Tensors stay inside; out come numbers."""

    def __init__(
        self, adapter: LoraAdapter, applied: Applied, settings: SolverOptions, progress: ProgressListener
    ) -> None:
        self.adapter, self.applied, self.settings, self.progress = adapter, applied, settings, progress
        self._local = threading.local()

    def weigh(self, targets: Sequence[Target]) -> tuple[TensorFit, ...]:
        """A row for each, in their order."""
        threads = torch.get_num_threads()
        hands = _hands(targets, self.settings.torch_device, threads)
        pool = ThreadPoolExecutor(hands, "deltarank", self._begin, (max(threads // hands, 1),))
        whole = math.fsum(target.nbytes for target in targets)
        rows: dict[str, TensorFit] = {}
        ahead = Prefetcher(targets)
        done, started = 0.0, time.perf_counter()
        try:
            jobs = {pool.submit(self._ahead, i, ahead, hands, target): target for i, target in enumerate(targets)}
            for job in as_completed(jobs):
                target = jobs.pop(job)
                rows[target.name] = job.result()
                done += target.nbytes
                pace = (time.perf_counter() - started) / done if done else 0.0
                self.progress.finished(target.name, (whole - done) * pace, done / whole if whole else 1.0)
        except BaseException:
            interrupt_reads(targets)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)
        return tuple(rows[target.name] for target in targets)

    def _begin(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._local.workspace = Workspace(self.settings.torch_device)

    def _ahead(self, number: int, ahead: Prefetcher, hands: int, target: Target) -> TensorFit:
        """While this one is weighed, the next come."""
        ahead.reached(number, at_least=hands)
        return self._row(target)

    def _row(self, target: Target) -> TensorFit:
        """A tensor that fails is a row too."""
        workspace: Workspace = self._local.workspace
        changes = self.applied.changes.get(target.name, ())
        try:
            return self._weighed(target, changes, workspace)
        except CheckpointError as error:
            return _blank(target, changes, Outcome.UNREADABLE, error.message)
        except (MemoryError, RuntimeError, ArithmeticError) as error:
            return _blank(target, changes, Outcome.FAILED, f"{type(error).__name__}: {error}"[:300])

    def _weighed(self, target: Target, changes: Sequence[Change], workspace: Workspace) -> TensorFit:
        rank = _rank(changes)
        effect = None
        if changes:
            effect = LoraUpdate(
                self.adapter, changes, device=self.settings.torch_device, dtype=self.settings.torch_dtype
            )
        keep = None
        if rank and rank < min(target.base.shape) and target.entries <= MOST_ENTRIES:
            keep = workspace.empty("delta", target.base.shape, self.settings.torch_dtype)
        sums, seen = overlap(target, effect, workspace, keep=keep)
        if not sums.is_finite:
            return _blank(target, changes, Outcome.NOT_FINITE, "a checkpoint holds NaN or Inf here")
        if not seen.is_finite:
            reason = "what the adapter adds here holds NaN or Inf"
            return _blank(target, changes, Outcome.NOT_FINITE, reason)
        best = self._best(target, sums, rank, keep, workspace)
        outcome = Outcome.IDENTICAL if sums.is_zero else Outcome.MEASURED
        if rank is not None and best is not None:
            best = min(best, seen.lost)  # the solver overstates what the best loses, by up to its tolerance
        energies = FitEnergies(sums.energy, seen.lost, best, seen.inner, seen.added)
        return _filled(target, changes, outcome, energies)

    def _best(
        self, target: Target, sums: Sums, rank: int | None, keep: torch.Tensor | None, workspace: Workspace
    ) -> float | None:
        """The least ||D - X||^2 over X of this rank; a rank of None is a tensor that may be replaced whole."""
        if rank is None or sums.is_zero or rank >= min(target.base.shape):
            return 0.0
        if rank == 0:
            return sums.energy
        if keep is None:
            return None
        rows, columns = target.base.shape
        solver = make_solver(
            choose_solver("auto", rows, columns, (rank,), self.settings.torch_device, tolerance=TOLERANCE),
            workspace,
            tolerance=TOLERANCE,
            seed=zlib.crc32(target.name.encode()),
        )
        edge = noise_edge(sums.rounding_energy, rows, columns)
        return measure_spectrum(keep, sums.energy, ranks=(rank,), solver=solver, edge=edge, workspace=workspace).lost(
            rank
        )


def _hands(targets: Sequence[Target], device: torch.device, threads: int) -> int:
    """Two, where two of the largest stay within what `compare` promises: 1 GB and three times the largest matrix."""
    largest = max((target.base.shape for target in targets), key=math.prod, default=(0, 0))
    held = 4.0 * math.prod(largest)
    two = 2 * (held + 8.0 * min(largest) ** 2)  # a delta, its Gram matrix, the solver's copy of that
    alone = device.type == "cpu" and threads == 1
    return 1 if alone or FIXED_MEMORY + two > PROMISED_MEMORY + 3 * held else 2


def _rank(changes: Sequence[Change]) -> int | None:
    """The highest rank that what is added can have; None if there is no bound."""
    parts = [change.placement.part for change in changes]
    return sum(part.rank for part in parts) if all(part.is_lora for part in parts) else None


def _new_bias(adapter: LoraAdapter, bias: NewBias) -> TensorFit:
    """Of a module that has none in either checkpoint: all of it leads away."""
    target, values = bias.weight, bias.scale * adapter.read(bias.part.up).to(torch.float64)
    energy = float(values.square().sum())
    is_finite = math.isfinite(energy)
    return TensorFit(
        name=bias.part.tensor,
        layer=target.layer if isinstance(target, Pair) else None,
        module=f"{target.module if isinstance(target, Pair) else bias.part.module}.bias",
        shape=tuple(bias.part.up.shape),
        outcome=Outcome.MEASURED if is_finite else Outcome.NOT_FINITE,
        change=TensorChange.WHOLE,
        energies=FitEnergies(lost=energy, best=0.0, added=energy) if is_finite else FitEnergies(),
        reason=NEW_BIAS if is_finite else "what the adapter adds here holds NaN or Inf",
    )


def _longer(applied: Applied, base: Checkpoint) -> Iterator[str]:
    """Vocabularies that grew."""
    for change in (change for changes in applied.changes.values() for change in changes):
        part, tensor = change.placement.part, change.placement.target.base.tensor
        ours, theirs = part.up.shape, base.tensors[tensor].shape if tensor in base.tensors else ()
        if part.kind is PartKind.WHOLE and len(ours) == len(theirs) == 2 and ours[0] > theirs[0]:
            yield (
                f"{shown(part.tensor)} has {ours[0]:,} rows in the adapter and {theirs[0]:,} in the base: "
                "PEFT loads it once the base's vocabulary is resized (resize_token_embeddings)"
            )


def _how(changes: Sequence[Change]) -> TensorChange:
    if not changes:
        return TensorChange.NONE
    return TensorChange.LORA if all(change.placement.part.is_lora for change in changes) else TensorChange.WHOLE


def _blank(target: Target, changes: Sequence[Change], outcome: Outcome, reason: str) -> TensorFit:
    return replace(_filled(target, changes, outcome, FitEnergies()), reason=reason)


def _filled(target: Target, changes: Sequence[Change], outcome: Outcome, energies: FitEnergies) -> TensorFit:
    how = _how(changes)
    return TensorFit(
        name=target.name,
        layer=target.layer if isinstance(target, Pair) else None,
        module=target.module if isinstance(target, Pair) else target.name.removesuffix(".weight"),
        shape=tuple(target.shape),
        outcome=outcome,
        change=how,
        rank=_rank(changes) or 0 if how is TensorChange.LORA else 0,
        scale=changes[-1].scale if how is TensorChange.LORA else None,
        energies=energies,
    )
