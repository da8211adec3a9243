"""Two checkpoints into a plan: which matrices are measured, and what becomes of everything else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.escape import dimensions, shown
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.fused_experts import NO_EXPERTS, Experts, match_experts, unmatched_experts
from deltarank.checkpoints.pairing.globs import Choice, Selection
from deltarank.checkpoints.pairing.names import Namer, Place
from deltarank.checkpoints.pairing.notes import notes_on
from deltarank.checkpoints.pairing.prefixes import match_names
from deltarank.checkpoints.pairing.refusals import refuse_adapters, refuse_empty, refuse_same, refuse_strangers
from deltarank.checkpoints.pairing.tied_embeddings import Tables
from deltarank.checkpoints.pieces import FLOAT_DTYPES, Pair, Pairing, Piece, SummedTensor, hold_the_same
from deltarank.results import Outcome, Skipped

# Convolutions have three dimensions, too, but a short last one; an expert's matrix is wide both ways.
_SHORTEST_SIDE = 16
_NOT_PLAIN = "which holds no plain weights"


def pair_checkpoints(
    base: Checkpoint,
    finetune: Checkpoint,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    experts: bool = False,
) -> Pairing:
    """Pairs the tensors of two checkpoints from their headers alone.

    Measured by default: every matrix of two dimensions, and every slice of a stack of matrices (fused experts), that
    is stored as plain numbers on both sides in one shape. Embeddings, the output head, vectors and convolutions are
    only summed. With `include`, what matches a glob is measured, embeddings, heads and vectors (as 1 x n) among it,
    and the rest is not read. `exclude` wins.

    Every tensor of either side ends in `pairs` (a stack as its slices), in `summed` or in `skipped`; a vocabulary
    of another length is in `skipped` once more, with its extra rows. With `experts`, fused experts of one side are
    compared with single ones of the other; such a pair is a part of a tensor, so whoever writes tensors leaves it out.

    Raises:
        PairingError: the two do not belong together.
        UsageError: (slug "glob-matches-nothing") a glob matches no tensor.
    """
    refuse_same(base, finetune)
    for side, checkpoint in (("base", base), ("finetune", finetune)):
        refuse_adapters(side, checkpoint)
    matches = match_names(base.tensors, finetune.tensors)
    found = match_experts(base.tensors, finetune.tensors, matches.names) if experts else NO_EXPERTS
    matches = replace(matches, names={**matches.names, **found.renamed}, notes=(*matches.notes, *found.notes))
    sides = _Sides(base, finetune, found)
    twos = sides.matched(matches.names)
    refuse_strangers(base, finetune, matches, [two.name for two in twos if two.is_model_matrix], asked=bool(include))
    selection = Selection(include, exclude)
    plan = _Plan(base, finetune, selection)
    for two in (*sides.with_experts(twos), *sides.tied(matches.names)):
        plan.settle(two)
    for info, outcome in sides.alone(matches.names):
        plan.leave_alone(info, outcome, sides.place(info, outcome))
    selection.refuse_unmet([*base.tensors, *finetune.tensors], sides.modules)
    if not plan.pairs:
        refuse_empty(plan.skipped, selected=bool(include or exclude))
    notes = [*matches.notes, *unmatched_experts(plan.skipped), *notes_on(base, finetune, plan.pairs, sides.both)]
    return Pairing(tuple(plan.pairs), tuple(plan.summed), tuple(plan.skipped), tuple(notes))


@dataclass(frozen=True, slots=True)
class _Two:
    """A tensor of the base and one of the finetune that are to be compared. `tie` says why they have unlike names."""

    name: str
    place: Place
    base: TensorInfo
    finetune: TensorInfo
    tie: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What globs are held against."""
        return (self.name, self.place.module) if self.tie else (self.name, self.base.name, self.place.module)

    @property
    def is_model_matrix(self) -> bool:
        return len(self.finetune.shape) > 1 and not self.place.vocabulary and not self.place.is_bias

    @property
    def has_other_rows(self) -> bool:
        """A vocabulary of another length."""
        shapes = (self.base.shape, self.finetune.shape)
        return (
            self.place.vocabulary is not None
            and all(len(shape) == 2 for shape in shapes)
            and shapes[0][0] != shapes[1][0]
            and shapes[0][1] == shapes[1][1]
        )


class _Sides:
    """The tensors of both checkpoints, placed, in the order in which a reader expects them."""

    def __init__(self, base: Checkpoint, finetune: Checkpoint, experts: Experts) -> None:
        self._base = base
        self._finetune = finetune
        self._experts = experts
        self.ours = _places(finetune.tensors)
        self.theirs = _places(base.tensors)
        self._tables = {
            "finetune": Tables(finetune.tensors, self.ours, finetune.config),
            "base": Tables(base.tensors, self.theirs, base.config),
        }

    @property
    def both(self) -> tuple[Mapping[str, Place], Mapping[str, Place]]:
        """The base's places, and the finetune's."""
        return self.theirs, self.ours

    @property
    def modules(self) -> list[str]:
        return sorted({place.module for places in (self.ours, self.theirs) for place in places.values()})

    def place(self, info: TensorInfo, outcome: Outcome) -> Place:
        return self.theirs[info.name] if outcome is Outcome.ONLY_IN_BASE else self.ours[info.name]

    def matched(self, names: Mapping[str, str]) -> list[_Two]:
        return [
            _Two(name, self.ours[name], self._base.tensors[names[name]], info)
            for name, info in _in_order(self._finetune.tensors, self.ours)
            if name in names
        ]

    def with_experts(self, twos: Sequence[_Two]) -> list[_Two]:
        """Parts of fused experts go with the rest of their layer."""
        parts = [
            _Two(each.finetune.name, (self.theirs if each.in_base else self.ours)[each.named], each.base, each.finetune)
            for each in self._experts.slices
        ]
        return sorted((*twos, *parts), key=lambda two: math.inf if two.place.layer is None else two.place.layer)

    def tied(self, names: Mapping[str, str]) -> list[_Two]:
        """The vocabulary that one side takes from its other half."""
        return [two for info, outcome in self._unmatched(names) if (two := self._tie(info, outcome)) is not None]

    def alone(self, names: Mapping[str, str]) -> list[tuple[TensorInfo, Outcome]]:
        return [(info, outcome) for info, outcome in self._unmatched(names) if self._tie(info, outcome) is None]

    def _unmatched(self, names: Mapping[str, str]) -> list[tuple[TensorInfo, Outcome]]:
        taken = self._experts.taken[0].union(names.values())
        gone = self._experts.taken[1]
        ours = [i for name, i in _in_order(self._finetune.tensors, self.ours) if name not in names and name not in gone]
        theirs = [i for name, i in _in_order(self._base.tensors, self.theirs) if name not in taken]
        return [*((i, Outcome.ONLY_IN_FINETUNE) for i in ours), *((i, Outcome.ONLY_IN_BASE) for i in theirs)]

    def _tie(self, info: TensorInfo, outcome: Outcome) -> _Two | None:
        place = self.place(info, outcome)
        in_base = outcome is Outcome.ONLY_IN_BASE
        side = "finetune" if in_base else "base"
        partner = self._tables[side].partner(info, place.vocabulary)
        if partner is None:
            return None
        tie = f"the {side} does not store it apart: compared with {shown(partner.name)} of the {side}"
        return _Two(info.name, place, *((info, partner) if in_base else (partner, info)), tie)


def _places(tensors: Mapping[str, TensorInfo]) -> dict[str, Place]:
    namer = Namer(tensors)
    return {name: namer.place(name) for name in tensors}


def _in_order(tensors: Mapping[str, TensorInfo], places: Mapping[str, Place]) -> list[tuple[str, TensorInfo]]:
    """By layer, what has none last; within a layer as it lies in the files."""

    def key(item: tuple[str, TensorInfo]) -> tuple[float, str, int]:
        layer = places[item[0]].layer
        return (math.inf if layer is None else layer, item[1].file, item[1].start)

    return sorted(tensors.items(), key=key)


class _Plan:
    """A pairing while it is being made: each tensor is put where it belongs."""

    def __init__(self, base: Checkpoint, finetune: Checkpoint, selection: Selection) -> None:
        self._sources = (base.source, finetune.source)
        # Where both hold the same bytes, those on this machine are read.
        self._nearer = int(base.traffic is not None and finetune.traffic is None)
        self._selection = selection
        self.pairs: list[Pair] = []
        self.summed: list[SummedTensor] = []
        self.skipped: list[Skipped] = []

    def leave_alone(self, info: TensorInfo, outcome: Outcome, place: Place) -> None:
        """A tensor that only one side has."""
        if self._selection.choose((info.name, place.module)) is Choice.LEFT_OUT:
            outcome = Outcome.EXCLUDED
        self._skip(info.name, outcome, outcome.sentence, info.shape)

    def settle(self, two: _Two) -> None:
        """A tensor that both sides have."""
        choice = self._selection.choose(two.names)
        if choice is Choice.LEFT_OUT:
            self._skip(two.name, Outcome.EXCLUDED, Outcome.EXCLUDED.sentence, two.finetune.shape)
        elif (obstacle := _obstacle(two)) is not None:
            self._skip(two.name, *obstacle, two.finetune.shape)
        else:
            self._compare(two, asked=choice is Choice.ASKED)

    def _skip(self, name: str, outcome: Outcome, reason: str, shape: tuple[int, ...]) -> None:
        self.skipped.append(Skipped(name, outcome, reason, shape))

    def _compare(self, two: _Two, *, asked: bool) -> None:
        if two.has_other_rows:
            self._skip_extra_rows(two)
        shape = tuple(map(min, two.base.shape, two.finetune.shape))
        if _is_stack(two):
            self._slice(two)
        elif (why := _why_not_by_default(two)) is None or (asked and len(shape) <= 2):
            self.pairs.append(Pair(two.name, two.place.layer, two.place.module, *self._pieces(two, shape)))
        else:
            self.summed.append(SummedTensor(two.name, *why, shape, *self._pieces(two, shape)))

    def _skip_extra_rows(self, two: _Two) -> None:
        ours, theirs = two.finetune.shape[0], two.base.shape[0]
        side, first, last = ("finetune", theirs, ours) if ours > theirs else ("base", ours, theirs)
        reason = f"rows {first:,} to {last - 1:,} are only in the {side}: its vocabulary is longer"
        self._skip(two.name, Outcome.EXTRA_ROWS, reason, (last - first, two.finetune.shape[1]))

    def _slice(self, two: _Two) -> None:
        number, rows, columns = two.finetune.shape
        for i in range(number):
            pieces = self._pieces(two, (rows, columns), skip=i * rows * columns)
            self.pairs.append(Pair(f"{two.name}[{i}]", two.place.layer, two.place.module, *pieces))

    def _pieces(self, two: _Two, shape: tuple[int, ...], *, skip: int = 0) -> tuple[Piece, Piece]:
        flat = _as_rows(shape)
        base, finetune = self._sources
        pieces = Piece.of(two.base, base, flat, skip=skip), Piece.of(two.finetune, finetune, flat, skip=skip)
        if hold_the_same(*pieces):
            return (pieces[self._nearer], pieces[self._nearer])
        return pieces


def _as_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Any shape as rows x columns: a vector is one row, a convolution has a row for each of its outputs."""
    if len(shape) < 2:
        return (1, math.prod(shape))
    return (shape[0], math.prod(shape[1:]))


def _obstacle(two: _Two) -> tuple[Outcome, str] | None:
    """Why there is no difference to take, if there is none."""
    for side, info in (("base", two.base), ("finetune", two.finetune)):
        if info.dtype not in FLOAT_DTYPES:
            why = info.storage.obstacle if info.storage else None
            return Outcome.NOT_FLOATING, f"stored as {shown(info.dtype)} in the {side}, {why or _NOT_PLAIN}"
    if two.base.shape != two.finetune.shape and not two.has_other_rows:
        shapes = f"{dimensions(two.base.shape)} in the base, {dimensions(two.finetune.shape)} in the finetune"
        return Outcome.SHAPE_DIFFERS, shapes
    if 0 in (two.base.entries, two.finetune.entries):
        return Outcome.NOT_A_MATRIX, "holds no numbers"
    return None


def _why_not_by_default(two: _Two) -> tuple[Outcome, str] | None:
    """Why a tensor is only summed, unless it was asked for; None if it is measured."""
    if two.tie:
        return Outcome.TIED, two.tie
    if two.place.vocabulary and len(two.finetune.shape) == 2:
        return Outcome.EMBEDDING, Outcome.EMBEDDING.sentence
    if len(two.finetune.shape) < 2:
        return Outcome.NOT_A_MATRIX, Outcome.NOT_A_MATRIX.sentence
    if two.place.is_bias:
        return Outcome.NOT_A_MATRIX, "a stack of biases: a LoRA has no place for it"
    if len(two.finetune.shape) > 2:
        return (
            Outcome.NOT_A_MATRIX,
            f"a tensor of {dimensions(two.finetune.shape)}, such as a convolution: not one matrix",
        )
    return None


def _is_stack(two: _Two) -> bool:
    """Fused experts: matrices of one shape, one behind the other."""
    shape = two.finetune.shape
    if len(shape) != 3 or two.place.is_bias:
        return False
    return "expert" in two.place.module or min(shape[1:]) >= _SHORTEST_SIDE
