"""Compares what an adapter does to the base with what finetuning changed, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from deltarank.adapters import (
    Applied,
    LoadEffect,
    LoraAdapter,
    PartKind,
    Unloaded,
    UnusedTensor,
    apply_adapter,
    open_adapter,
)
from deltarank.checkpoints import Checkpoint, Pairing, pair_checkpoints, quoted
from deltarank.jobs.verify.measure import (
    TOLERANCE,
    FitMeasurer,
    FitTask,
    Target,
    new_bias_row,
    parallel_tensors,
)
from deltarank.jobs.verify.verdict import judge_fit, uncounted
from deltarank.results import IgnoredTensor, TensorFit, Verification
from deltarank.runtime import (
    READ_RATE,
    PairRefs,
    ProgressListener,
    Ref,
    SolverOptions,
    TimeEstimate,
    matrix_pass,
    utc_timestamp,
)
from deltarank.servers import PEFT, get_server
from deltarank.system import Default, tool_version

_ONE_SIDED = "only one of the checkpoints has a bias there, so its change is not compared"


def verify(
    base: Ref,
    finetune: Ref,
    adapter: Ref,
    *,
    server: str | None = None,
    base_revision: str | None = None,
    revision: str | None = None,
    adapter_revision: str | None = None,
    fetch: str = Default.FETCH,
    device: str = Default.DEVICE,
    progress: ProgressListener | None = None,
) -> Verification:
    """Measures ||W - (W0 + L)||^2 of a LoRA L from disk, tensor by tensor, beside the least possible at its rank.

    Args:
        base, finetune: as for `deltarank.compare`.
        adapter: a folder with adapter_config.json and adapter_model.safetensors, from any tool; or a Hub id.
        server: applies the adapter as this server does: "vllm", "sglang", "lorax", "llama.cpp"; "portable": as none of
            them refuses it; "peft" or None: as PEFT does.
        base_revision, revision, adapter_revision: branch, tag or commit on the Hub of each.
        fetch: for a model that is not in the Hub's cache: "download", "stream" or "auto".
        device: where to compute.
        progress: receives the progress.

    Raises:
        UsageError: an argument is not usable.
        AdapterError: the adapter cannot be read, is refused by the server, or belongs to another base.
        CheckpointError, PairingError: see `deltarank.errors`.
    """
    rules = get_server(server or PEFT)
    options = SolverOptions(ranks=(1,), tolerance=TOLERANCE, device=device)
    refs = PairRefs.of(base, finetune, base_revision=base_revision, revision=revision, fetch=fetch)
    progress = progress or ProgressListener()
    with open_adapter(adapter, revision=adapter_revision) as lora, refs.open(progress) as (before, after):
        job = _VerifyJob(lora, before, after, server, options)
        rows = job.measure(progress)
        ignored = job.ignored()
        unused = tuple(IgnoredTensor(entry.name, entry.reason) for entry in ignored)
        kind, sentences = judge_fit(
            rows,
            unused,
            [entry for entry in ignored if entry.effect is not LoadEffect.NONE],
            job.unloaded,
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
            notes=job.notes(rows),
            kind=kind,
            sentences=sentences,
            tool_version=tool_version(),
            created=utc_timestamp(),
        )


class _VerifyJob:
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

    def measure(self, progress: ProgressListener) -> tuple[TensorFit, ...]:
        """A row for each tensor that both checkpoints have, in their order, then for each bias that neither has."""
        rows = {
            row.name: row
            for row in matrix_pass(
                [[FitTask(target)] for target in self._targets],
                lambda: FitMeasurer(self._adapter, self._applied.changes, self._options),
                seconds=lambda task: task.pair.nbytes / READ_RATE,
                workers=parallel_tensors(self._targets, self._options.torch_device),
                progress=progress,
                estimate=TimeEstimate(progress, math.fsum(each.nbytes / READ_RATE for each in self._targets)),
            )
        }
        new = [
            new_bias_row(self._adapter, bias) for bias in self._new_biases if bias.part.tensor not in self._one_sided
        ]
        return (*(rows[target.name] for target in self._targets), *new)

    def ignored(self) -> list[UnusedTensor]:
        """The tensors of the adapter's file that change nothing that is compared."""
        one_sided = [bias.part for bias in self._new_biases if bias.part.tensor in self._one_sided]
        biases = [UnusedTensor(part.up.name, _ONE_SIDED) for part in one_sided]
        return [entry for entry in (*self._applied.unused, *biases) if not self._adapter.is_padding(entry.name)]

    @property
    def unloaded(self) -> Unloaded | None:
        """The LoRAs of the file that its reader does not load."""
        return self._applied.unloaded

    def notes(self, rows: Sequence[TensorFit]) -> tuple[str, ...]:
        return (
            *self._applied.notes,
            *self._resized_vocabularies(),
            *uncounted(rows, self._pairing.skipped),
            *self._pairing.notes,
        )

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
