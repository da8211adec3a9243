"""Who is compared with the finetune: each a model of edited weights, with a name and a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltarank.adapters import Adapter, Effect, apply, open_adapter
from deltarank.checkpoints import PLAIN, Checkpoint, Leftover, Pair, Pairing, Piece, open_checkpoint
from deltarank.jobs.outputs.low_rank import LowRank
from deltarank.jobs.outputs.options import AGAIN, ANY_RANK, BASE, WHOLE
from deltarank.models import Blueprint, Edit, Weights, blueprint, read_piece
from deltarank.results import CandidateKind, listing


@dataclass(frozen=True)
class Member:
    """A candidate: a model that is made when its turn comes.

    plan             its configuration
    weights          its numbers, tensor by tensor
    """

    name: str
    kind: CandidateKind
    plan: Blueprint
    weights: Weights
    rank: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class Stage:
    """The two checkpoints and what is known of them before anything is computed."""

    before: Checkpoint
    after: Checkpoint
    pairing: Pairing
    base_plan: Blueprint
    plan: Blueprint
    device: torch.device
    trust_remote_code: bool = False
    fetch: str = "auto"

    @property
    def targets(self) -> tuple[Pair | Leftover, ...]:
        """All that both hold."""
        return (*self.pairing.pairs, *self.pairing.leftovers)

    def of_finetune(self, edits: Sequence[Edit] = ()) -> Weights:
        return Weights.of(self.after, edits, self.device)

    def of_base(self, edits: Sequence[Edit] = ()) -> Weights:
        return Weights.of(self.before, edits, self.device)


@dataclass
class Cast:
    """The candidates of one job. Adapters and further checkpoints stay open while it lasts: use it in a `with`."""

    stage: Stage
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def controls(self) -> Iterator[Member]:
        """What must read zero."""
        stage = self.stage
        yield Member(AGAIN, CandidateKind.CONTROL, stage.plan, stage.of_finetune(), note="the same weights once more")
        edits = [Edit(each.finetune, _whole(each, stage.device), each.finetune.dtype) for each in stage.targets]
        note = "W0 + (W - W0) of every tensor, rounded once more to the type that the finetune is stored in"
        yield Member(WHOLE, CandidateKind.CONTROL, stage.plan, stage.of_finetune(edits), note=note)

    def base(self) -> Member:
        return Member(BASE, CandidateKind.BASE, self.stage.base_plan, self.stage.of_base())

    def ranks(self, low: LowRank, ranks: Sequence[int]) -> Iterator[Member]:
        """The base with D_r in the matrices that a LoRA carries; and with all of D there, which no LoRA goes beyond."""
        stage = self.stage
        for rank in ranks:
            weights = stage.of_base(low.edits(rank))
            yield Member(f"rank {rank}", CandidateKind.RANK, stage.base_plan, weights, rank)
        edits = [Edit(pair.base, _replaced(pair, stage.device)) for pair in low.pairs.values()]
        note = "all of the delta in the matrices, everything else the base's: no LoRA of any rank goes beyond it"
        yield Member(ANY_RANK, CandidateKind.RANK, stage.base_plan, stage.of_base(edits), note=note)

    def adapter(self, folder: str | Path, server: str | None, name: str) -> Member:
        """The base with an adapter from disk on it, as PEFT or `server` applies it."""
        stage = self.stage
        lora = self._open.enter_context(open_adapter(folder))
        applied = apply(lora, stage.targets, server=server, config=stage.before.config)
        applied.refuse_broken()
        places = {target.name: target for target in stage.targets}
        edits = [
            Edit(places[name].base, _adapted(lora, changes, stage.device)) for name, changes in applied.changes.items()
        ]
        notes = [*applied.notes, *applied.notes_on_biases(lora)]
        if applied.strays:
            names = listing([ascii(stray.name)[1:-1] for stray in applied.strays], most=2)
            notes.append(f"passed over: {names}: {applied.strays[0].reason}")
        ranks = {c.landing.part.rank for changes in applied.changes.values() for c in changes if c.landing.part.is_lora}
        rank = ranks.pop() if len(ranks) == 1 else None
        note = "; ".join(notes) or None
        return Member(name, CandidateKind.ADAPTER, stage.base_plan, stage.of_base(edits), rank, note)

    def model(self, ref: str | Path, name: str) -> Member:
        """Another checkpoint."""
        stage = self.stage
        checkpoint = self._open.enter_context(open_checkpoint(ref, fetch=stage.fetch))
        plan = blueprint(checkpoint, trust_remote_code=stage.trust_remote_code)
        return Member(name, CandidateKind.MODEL, plan, Weights.of(checkpoint, [], stage.device))

    def yardstick(self, name: str, ruler: Any) -> Member:
        """The finetune, its matrices quantised and read back."""
        stage = self.stage
        edits = [
            Edit(piece, ruler.round)
            for tensor, info in stage.after.tensors.items()
            if info.dtype in PLAIN and len(info.shape) > 1 and ruler.applies(tensor, info.shape)
            for piece in (Piece.of(info, stage.after.source, (info.entries // info.shape[-1], info.shape[-1])),)
        ]
        return Member(name, CandidateKind.YARDSTICK, stage.plan, stage.of_finetune(edits), note=ruler.note)

    def part(self, low: LowRank, rank: int, names: Sequence[str]) -> Weights:
        """The finetune with some matrices alone brought to rank r."""
        return self.stage.of_finetune(low.replacements(rank, names))


def _whole(each: Pair | Leftover, device: torch.device) -> Callable[[Tensor], Tensor]:
    def change(tuned: Tensor) -> Tensor:
        base = read_piece(each.base, device)
        return base + (tuned - base)

    return change


def _replaced(pair: Pair, device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda _: read_piece(pair.finetune, device)


def _adapted(lora: Adapter, changes: Sequence[Any], device: torch.device) -> Callable[[Tensor], Tensor]:
    def change(base: Tensor) -> Tensor:
        effect = Effect(lora, changes, device=device, dtype=torch.float32)
        return base + effect.rows(0, base)

    return change
