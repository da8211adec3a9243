"""Who is compared with the finetune: each a model of edited weights, with a name and a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltarank.adapters import LoraAdapter, LoraUpdate, apply_adapter, open_adapter
from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, Pair, Pairing, Piece, SummedTensor, open_checkpoint, shown
from deltarank.jobs.outputs.low_rank import LowRank
from deltarank.jobs.outputs.options import AGAIN, ANY_RANK, BASE, WHOLE
from deltarank.models import Edit, EditedWeights, ModelSkeleton, Yardstick, read_piece, read_skeleton
from deltarank.results import CandidateKind, listing


@dataclass(frozen=True)
class Candidate:
    """A model that is compared with the finetune. It is loaded only when its turn comes."""

    name: str
    kind: CandidateKind
    skeleton: ModelSkeleton
    weights: EditedWeights
    rank: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class ModelPair:
    """The two checkpoints and what is known of them before anything is computed."""

    before: Checkpoint
    after: Checkpoint
    pairing: Pairing
    base_skeleton: ModelSkeleton
    skeleton: ModelSkeleton
    device: torch.device
    trust_remote_code: bool = False
    fetch: str = "auto"

    @property
    def targets(self) -> tuple[Pair | SummedTensor, ...]:
        """All that both hold."""
        return (*self.pairing.pairs, *self.pairing.summed)

    def of_finetune(self, edits: Sequence[Edit] = ()) -> EditedWeights:
        return EditedWeights(self.after, edits, self.device)

    def of_base(self, edits: Sequence[Edit] = ()) -> EditedWeights:
        return EditedWeights(self.before, edits, self.device)


@dataclass
class CandidateSet:
    """The candidates of one job. Adapters and further checkpoints stay open while it lasts: use it in a `with`."""

    models: ModelPair
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> CandidateSet:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def controls(self) -> Iterator[Candidate]:
        """What must read zero."""
        models = self.models
        yield Candidate(
            AGAIN, CandidateKind.CONTROL, models.skeleton, models.of_finetune(), note="the same weights once more"
        )
        edits = [Edit(each.finetune, _whole(each, models.device), each.finetune.dtype) for each in models.targets]
        note = "W0 + (W - W0) of every tensor, rounded once more to the type that the finetune is stored in"
        yield Candidate(WHOLE, CandidateKind.CONTROL, models.skeleton, models.of_finetune(edits), note=note)

    def base(self) -> Candidate:
        return Candidate(BASE, CandidateKind.BASE, self.models.base_skeleton, self.models.of_base())

    def ranks(self, low: LowRank, ranks: Sequence[int]) -> Iterator[Candidate]:
        """The base with D_r in the matrices that a LoRA carries; and with all of D there, which no LoRA goes beyond."""
        models = self.models
        for rank in ranks:
            weights = models.of_base(low.edits(rank))
            yield Candidate(f"rank {rank}", CandidateKind.RANK, models.base_skeleton, weights, rank)
        edits = [Edit(pair.base, _replaced(pair, models.device)) for pair in low.pairs.values()]
        note = "all of the delta in the matrices, everything else the base's: no LoRA of any rank goes beyond it"
        yield Candidate(ANY_RANK, CandidateKind.RANK, models.base_skeleton, models.of_base(edits), note=note)

    def adapter(self, folder: str | Path, server: str | None, name: str) -> Candidate:
        """The base with an adapter from disk on it, as PEFT or `server` applies it."""
        models = self.models
        lora = self._open.enter_context(open_adapter(folder))
        applied = apply_adapter(lora, models.targets, server=server, config=models.before.config)
        applied.check_loads_in_peft()
        places = {target.name: target for target in models.targets}
        edits = [
            Edit(places[name].base, _adapted(lora, changes, models.device)) for name, changes in applied.changes.items()
        ]
        notes = [*applied.notes, *applied.left_out_biases(lora)]
        if applied.unused:
            names = listing([shown(entry.name) for entry in applied.unused], most=2)
            notes.append(f"passed over: {names}: {applied.unused[0].reason}")
        ranks = {
            c.placement.part.rank for changes in applied.changes.values() for c in changes if c.placement.part.is_lora
        }
        rank = ranks.pop() if len(ranks) == 1 else None
        note = "; ".join(notes) or None
        return Candidate(name, CandidateKind.ADAPTER, models.base_skeleton, models.of_base(edits), rank, note)

    def model(self, ref: str | Path, name: str) -> Candidate:
        """Another checkpoint."""
        models = self.models
        checkpoint = self._open.enter_context(open_checkpoint(ref, fetch=models.fetch))
        skeleton = read_skeleton(checkpoint, trust_remote_code=models.trust_remote_code)
        return Candidate(name, CandidateKind.MODEL, skeleton, EditedWeights(checkpoint, [], models.device))

    def yardstick(self, yardstick: Yardstick) -> Candidate:
        """The finetune, its matrices quantised and read back."""
        models = self.models
        edits = [
            Edit(piece, yardstick.fake_quantise)
            for tensor, info in models.after.tensors.items()
            if info.dtype in FLOAT_DTYPES and len(info.shape) > 1 and yardstick.applies_to(tensor, info.shape)
            for piece in (Piece.of(info, models.after.source, (info.entries // info.shape[-1], info.shape[-1])),)
        ]
        return Candidate(
            yardstick.name, CandidateKind.YARDSTICK, models.skeleton, models.of_finetune(edits), note=yardstick.note
        )

    def part(self, low: LowRank, rank: int, names: Sequence[str]) -> EditedWeights:
        """The finetune with some matrices alone brought to rank r."""
        return self.models.of_finetune(low.replacements(rank, names))


def _whole(each: Pair | SummedTensor, device: torch.device) -> Callable[[Tensor], Tensor]:
    def change(tuned: Tensor) -> Tensor:
        base = read_piece(each.base, device)
        return base + (tuned - base)

    return change


def _replaced(pair: Pair, device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda _: read_piece(pair.finetune, device)


def _adapted(lora: LoraAdapter, changes: Sequence[Any], device: torch.device) -> Callable[[Tensor], Tensor]:
    def change(base: Tensor) -> Tensor:
        effect = LoraUpdate(lora, changes, device=device, dtype=torch.float32)
        return base + effect.rows(0, base)

    return change
