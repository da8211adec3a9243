"""The candidates: each is a model of edited weights, with a name and a kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from deltarank.adapters import Applied, Change, LoraAdapter, LoraUpdate, open_adapter
from deltarank.checkpoints import FLOAT_DTYPES, Pair, Piece, SummedTensor, open_checkpoint, quoted
from deltarank.jobs.outputs.candidate_names import (
    ANY_RANK,
    BASE,
    WHOLE_DELTA,
    adapter_names,
    model_names,
    rank_name,
    truncation_name,
)
from deltarank.jobs.outputs.low_rank import LowRankDeltas
from deltarank.jobs.outputs.model_pair import ModelPair
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.models import Edit, EditedWeights, ModelSkeleton, get_yardstick, read_piece, read_skeleton
from deltarank.results import FINETUNE_AGAIN, CandidateKind, listing


@dataclass(frozen=True)
class Candidate:
    """A model that is compared with the finetune. It is loaded only when it is measured."""

    name: str
    kind: CandidateKind
    skeleton: ModelSkeleton
    weights: EditedWeights
    rank: int | None = None
    note: str | None = None


class CandidateSet:
    """Makes the candidates of a job. Keeps adapters and other checkpoints open: use it in a `with`.

    Args:
        truncated_rank, taken: see `candidate_kinds`.
        fetch: how other checkpoints are fetched from the Hub.
    """

    def __init__(
        self,
        models: ModelPair,
        deltas: LowRankDeltas,
        options: OutputsOptions,
        *,
        truncated_rank: int | None,
        taken: Collection[str] = (),
        fetch: str,
    ) -> None:
        self._models, self._deltas, self._options, self._fetch = models, deltas, options, fetch
        self._truncated_rank, self._taken = truncated_rank, taken
        self._open = ExitStack()

    def __enter__(self) -> CandidateSet:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def of_names(self, names: Sequence[str]) -> list[Candidate]:
        """Those of these names, which are among those of `candidate_kinds`."""
        return [self._makers[name]() for name in names]

    @cached_property
    def _makers(self) -> dict[str, Callable[[], Candidate]]:
        options, truncated = self._options, self._truncated_rank
        adapters = zip(adapter_names(options, self._taken), options.adapters, strict=True)
        models = zip(model_names(options, self._taken), options.models, strict=True)
        return {
            FINETUNE_AGAIN: self._finetune_again,
            WHOLE_DELTA: self._whole_delta,
            BASE: self._base,
            **{rank_name(rank): partial(self._rank, rank) for rank in options.ranks},
            ANY_RANK: self._any_rank,
            **({} if truncated is None else {truncation_name(truncated): partial(self._truncation, truncated)}),
            **{name: partial(self._adapter, folder, name) for name, folder in adapters},
            **{name: partial(self._model, ref, name) for name, ref in models},
            **{name: partial(self._yardstick, name) for name in options.yardsticks},
        }

    def _finetune_again(self) -> Candidate:
        return self._edited_finetune(FINETUNE_AGAIN, CandidateKind.CONTROL, [], "the same weights once more")

    def _whole_delta(self) -> Candidate:
        device = self._models.device
        edits = [
            Edit(each.finetune, _add_delta(each, device), each.finetune.dtype) for each in self._models.common_tensors
        ]
        note = "W0 + (W - W0) of every tensor, rounded once more to the type that the finetune is stored in"
        return self._edited_finetune(WHOLE_DELTA, CandidateKind.CONTROL, edits, note)

    def _base(self) -> Candidate:
        return self._edited_base(BASE, CandidateKind.BASE, [])

    def _rank(self, rank: int) -> Candidate:
        """The base plus D_r in the matrices that a LoRA has factors for."""
        return self._edited_base(rank_name(rank), CandidateKind.RANK, self._deltas.base_edits(rank), rank)

    def _any_rank(self) -> Candidate:
        """The base plus all of D in the same matrices."""
        edits = [Edit(pair.base, _read_finetune(pair, self._models.device)) for pair in self._deltas.pairs.values()]
        note = "all of the delta in the matrices, everything else the base's: plain extraction ends here"
        return self._edited_base(ANY_RANK, CandidateKind.RANK, edits, note=note)

    def _truncation(self, rank: int) -> Candidate:
        """The finetune with W0 + D_r in the matrices that a LoRA has factors for, everything else its own."""
        edits = self._deltas.finetune_edits(rank, list(self._deltas.pairs))
        note = f"the finetune with its matrices truncated to rank {rank}; norms, embeddings and output head are its own"
        return self._edited_finetune(truncation_name(rank), CandidateKind.TRUNCATION, edits, note, rank)

    def _adapter(self, folder: str, name: str) -> Candidate:
        """The base with an adapter from disk, as PEFT or the server applies it."""
        models = self._models
        lora = self._open.enter_context(open_adapter(folder))
        applied = models.apply_adapter(lora, self._options.server)
        heads = {head.name: head for head in applied.untied}
        targets = {name: changes[0].placement.target for name, changes in applied.changes.items()} | heads
        edits = [
            Edit(
                target.base,
                _add_adapter(lora, applied.changes.get(name, ()), models.device),
                new_tensor=name if name in heads else None,
            )
            for name, target in targets.items()
        ]
        return self._edited_base(name, CandidateKind.ADAPTER, edits, _only_rank(applied), _adapter_note(applied, lora))

    def _model(self, ref: str, name: str) -> Candidate:
        checkpoint = self._open.enter_context(open_checkpoint(ref, fetch=self._fetch))
        skeleton = read_skeleton(checkpoint, trust_remote_code=self._options.trust_remote_code)
        weights = EditedWeights(checkpoint, [], self._models.device)
        return Candidate(name, CandidateKind.MODEL, skeleton, weights)

    def _yardstick(self, name: str) -> Candidate:
        """The finetune with its matrices quantised and dequantised."""
        yardstick, finetune = get_yardstick(name), self._models.finetune
        edits = [
            Edit(
                Piece.from_info(info, finetune.source, (info.entries // info.shape[-1], info.shape[-1])),
                yardstick.fake_quantise,
            )
            for tensor, info in finetune.tensors.items()
            if info.dtype in FLOAT_DTYPES and len(info.shape) > 1 and yardstick.applies_to(tensor, info.shape)
        ]
        return self._edited_finetune(yardstick.name, CandidateKind.YARDSTICK, edits, yardstick.note)

    def _edited_base(
        self, name: str, kind: CandidateKind, edits: Sequence[Edit], rank: int | None = None, note: str | None = None
    ) -> Candidate:
        return Candidate(name, kind, self._models.base_skeleton, self._models.base_weights(edits), rank, note)

    def _edited_finetune(
        self, name: str, kind: CandidateKind, edits: Sequence[Edit], note: str, rank: int | None = None
    ) -> Candidate:
        return Candidate(name, kind, self._models.finetune_skeleton, self._models.finetune_weights(edits), rank, note)


def _only_rank(applied: Applied) -> int | None:
    """The rank of an adapter whose parts all have the same."""
    parts = [change.placement.part for changes in applied.changes.values() for change in changes]
    ranks = {part.rank for part in parts if part.is_lora}
    return ranks.pop() if len(ranks) == 1 else None


def _adapter_note(applied: Applied, lora: LoraAdapter) -> str | None:
    calibrated = ["calibrated: fitted to the finetune's predictions, not to its weights"] if lora.is_calibrated else []
    notes = [*calibrated, *applied.notes, *applied.left_out_biases(lora)]
    if applied.unused:
        names = listing([quoted(tensor.name) for tensor in applied.unused], most=2)
        notes.append(f"not used: {names}: {applied.unused[0].reason}")
    return "; ".join(notes) or None


def _add_delta(tensor: Pair | SummedTensor, device: torch.device) -> Callable[[Tensor], Tensor]:
    """W to W0 + (W - W0)."""

    def change(finetune: Tensor) -> Tensor:
        base = read_piece(tensor.base, device)
        return base + (finetune - base)

    return change


def _read_finetune(pair: Pair, device: torch.device) -> Callable[[Tensor], Tensor]:
    """W0 to W."""
    return lambda _: read_piece(pair.finetune, device)


def _add_adapter(lora: LoraAdapter, changes: Sequence[Change], device: torch.device) -> Callable[[Tensor], Tensor]:
    """W0 to W0 plus what the adapter adds."""

    def change(base: Tensor) -> Tensor:
        update = LoraUpdate(lora, changes, device=device, dtype=torch.float32)
        return base + update.rows(0, base)

    return change
