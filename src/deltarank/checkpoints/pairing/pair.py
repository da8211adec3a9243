"""Pairs two checkpoints: which tensors are measured, only summed, or skipped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.escape import dimensions, quoted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.base_layout import in_layout_of
from deltarank.checkpoints.pairing.fused_experts import (
    NO_EXPERT_MATCHES,
    ExpertMatches,
    match_experts,
    note_unmatched_experts,
)
from deltarank.checkpoints.pairing.globs import Choice, Selection
from deltarank.checkpoints.pairing.name_matches import find_copies, match_names
from deltarank.checkpoints.pairing.names import Location, locate_all
from deltarank.checkpoints.pairing.notes import notes_on
from deltarank.checkpoints.pairing.one_vocabulary import state_tied_embedding, with_one_vocabulary
from deltarank.checkpoints.pairing.other_vocabulary import have_other_tokens
from deltarank.checkpoints.pairing.output_heads import match_output_heads
from deltarank.checkpoints.pairing.refusals import refuse_adapters, refuse_empty, refuse_same, refuse_unrelated
from deltarank.checkpoints.pairing.result import Pairing
from deltarank.checkpoints.pairing.tied_embeddings import TiedEmbeddings
from deltarank.checkpoints.pieces import FLOAT_DTYPES, Pair, Piece, SummedTensor, is_same_data
from deltarank.results import Outcome, Skipped
from deltarank.tensor_names import EXPERT, ROUTER, kind_in_words

_MATRIX_KINDS = (None, EXPERT, ROUTER)
"""Kinds of tensors that are the matrix of a linear layer."""


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
    is plain or decoded on both sides in one shape. Embeddings, the output head, vectors and convolutions are only
    summed. With `include`, tensors that match a glob are measured, including embeddings and heads (vectors are summed),
    and the rest is not read. `exclude` wins.

    Every tensor of either side is in `pairs` (a stack as its slices), in `summed` or in `skipped`; a vocabulary of
    another length is in `skipped` as well, with its extra rows. With `experts`, fused experts of one side are compared
    with single ones of the other. Such a pair is only a part of a tensor, so it cannot be written as one.

    Raises:
        PairingError: the two do not belong together.
        UsageError: (slug "glob-matches-nothing") a glob matches no tensor.
    """
    refuse_same(base, finetune)
    refuse_adapters("base", base)
    refuse_adapters("finetune", finetune)
    base, finetune = with_one_vocabulary(base, finetune), with_one_vocabulary(finetune, base)
    finetune = in_layout_of(base, finetune)
    matches = match_names(base.tensors, finetune.tensors)
    heads, head_notes = match_output_heads(base, finetune, matches.names)
    matches = replace(matches, names={**matches.names, **heads}, notes=(*matches.notes, *head_notes))
    fused = match_experts(base.tensors, finetune.tensors, matches.names) if experts else NO_EXPERT_MATCHES
    matches = replace(matches, names={**matches.names, **fused.renamed}, notes=(*matches.notes, *fused.notes))
    matcher = _Matcher(base, finetune, matches.names, fused)
    matched = matcher.matched()
    matrices = [match.name for match in matched if match.is_model_matrix]
    refuse_unrelated(base, finetune, matches, matrices, has_include=bool(include))
    selection = Selection(include, exclude)
    builder = _PairingBuilder(base, finetune, selection)
    unmatched = list(matcher.unmatched())
    ties = [matcher.tie(*each) for each in unmatched]
    for match in (*matcher.with_experts(matched), *filter(None, ties)):
        builder.add_match(match)
    for each, tie in zip(unmatched, ties, strict=True):
        if tie is None:
            builder.add_unmatched(*each)
    selection.refuse_unmatched([*base.tensors, *finetune.tensors], matcher.modules)
    if not builder.pairs:
        refuse_empty([*builder.summed, *builder.skipped], selected=bool(include or exclude))
    locations = matcher.base_locations, matcher.finetune_locations
    notes = [
        *matches.notes,
        *note_unmatched_experts(builder.skipped),
        *notes_on(base, finetune, builder.pairs, locations),
    ]
    summed = state_tied_embedding(builder.summed, base, finetune)
    return Pairing(tuple(builder.pairs), tuple(summed), tuple(builder.skipped), tuple(notes), base, finetune)


@dataclass(frozen=True, slots=True)
class _Match:
    """A tensor of the base and one of the finetune to compare. `tie` explains why their names have different roles."""

    name: str
    location: Location
    base: TensorInfo
    finetune: TensorInfo
    tie: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What globs are matched against."""
        return (self.name, self.location.module) if self.tie else (self.name, self.base.name, self.location.module)

    @property
    def is_model_matrix(self) -> bool:
        return len(self.finetune.shape) > 1 and self.location.kind in _MATRIX_KINDS

    @property
    def is_resized_vocabulary(self) -> bool:
        base, finetune = self.base.shape, self.finetune.shape
        return (
            self.location.vocabulary is not None
            and len(base) == len(finetune) == 2
            and base[0] != finetune[0]
            and base[1] == finetune[1]
        )

    @property
    def is_stack(self) -> bool:
        """Fused experts: matrices of one shape, one after the other. Other tensors of three sides are convolutions."""
        kind, module = self.location.kind, self.location.module
        return len(self.finetune.shape) == 3 and (kind == EXPERT or ("expert" in module and kind != "bias"))


class _Matcher:
    """The tensors of both checkpoints, located, in the order in which a reader expects them.

    `names` maps a finetune's name to the base's.
    """

    def __init__(
        self, base: Checkpoint, finetune: Checkpoint, names: Mapping[str, str], experts: ExpertMatches
    ) -> None:
        self._base = base
        self._finetune = finetune
        self._names = names
        self._experts = experts
        self.base_locations = locate_all(base.tensors)
        self.finetune_locations = locate_all(finetune.tensors)
        self._base_ties = TiedEmbeddings(base.tensors, self.base_locations, base.config)
        self._finetune_ties = TiedEmbeddings(finetune.tensors, self.finetune_locations, finetune.config)

    @property
    def modules(self) -> list[str]:
        return sorted({each.module for each in (*self.base_locations.values(), *self.finetune_locations.values())})

    def matched(self) -> list[_Match]:
        return [
            _Match(info.name, self.finetune_locations[info.name], self._base.tensors[self._names[info.name]], info)
            for info in _in_order(self._finetune.tensors, self.finetune_locations)
            if info.name in self._names
        ]

    def with_experts(self, matched: Sequence[_Match]) -> list[_Match]:
        """Parts of fused experts are sorted into their layers."""
        parts = [
            _Match(
                pair.finetune.name,
                (self.base_locations if pair.single_is_base else self.finetune_locations)[pair.single],
                pair.base,
                pair.finetune,
            )
            for pair in self._experts.pairs
        ]
        return sorted((*matched, *parts), key=lambda match: _layer_order(match.location))

    def unmatched(self) -> Iterable[tuple[TensorInfo, Outcome, Location]]:
        """Tensors of one side without a match on the other."""
        base_used = self._experts.used[0].union(self._names.values())
        finetune_used = self._experts.used[1].union(self._names)
        base_copies = find_copies(self._base.tensors, self._names.values())
        finetune_copies = find_copies(self._finetune.tensors, self._names)
        for info in _in_order(self._finetune.tensors, self.finetune_locations):
            if info.name not in finetune_used:
                outcome = Outcome.DUPLICATE if info.name in finetune_copies else Outcome.ONLY_IN_FINETUNE
                yield info, outcome, self.finetune_locations[info.name]
        for info in _in_order(self._base.tensors, self.base_locations):
            if info.name not in base_used:
                outcome = Outcome.DUPLICATE if info.name in base_copies else Outcome.ONLY_IN_BASE
                yield info, outcome, self.base_locations[info.name]

    def tie(self, info: TensorInfo, outcome: Outcome, location: Location) -> _Match | None:
        """The counterpart of an unmatched embedding or head that the other side shares with its head or embedding."""
        if outcome is Outcome.DUPLICATE:
            return None
        in_base = outcome is Outcome.ONLY_IN_BASE
        side, ties = ("finetune", self._finetune_ties) if in_base else ("base", self._base_ties)
        counterpart = ties.find_tied(info, location.vocabulary)
        if counterpart is None:
            return None
        tie = f"the {side} does not store it separately: compared with {quoted(counterpart.name)} of the {side}"
        return _Match(info.name, location, *((info, counterpart) if in_base else (counterpart, info)), tie)


def _in_order(tensors: Mapping[str, TensorInfo], locations: Mapping[str, Location]) -> list[TensorInfo]:
    """By layer, tensors without one last; within a layer in file order."""
    return sorted(tensors.values(), key=lambda info: (_layer_order(locations[info.name]), info.file, info.start))


def _layer_order(location: Location) -> float:
    return math.inf if location.layer is None else location.layer


class _PairingBuilder:
    """Sorts every tensor into pairs, summed or skipped."""

    def __init__(self, base: Checkpoint, finetune: Checkpoint, selection: Selection) -> None:
        self._sources = (base.source, finetune.source)
        # If both sides hold the same bytes, local ones are read.
        self._preferred_side = int(base.traffic is not None and finetune.traffic is None)
        self._selection = selection
        self.pairs: list[Pair] = []
        self.summed: list[SummedTensor] = []
        self.skipped: list[Skipped] = []

    def add_unmatched(self, info: TensorInfo, outcome: Outcome, location: Location) -> None:
        """A tensor that only one side has."""
        if self._selection.choose((info.name, location.module)) is Choice.EXCLUDED:
            outcome = Outcome.EXCLUDED
        self._skip(info.name, outcome, outcome.sentence, info.shape)

    def add_match(self, match: _Match) -> None:
        """A tensor that both sides have."""
        choice = self._selection.choose(match.names)
        if choice is Choice.EXCLUDED:
            self._skip(match.name, Outcome.EXCLUDED, Outcome.EXCLUDED.sentence, match.finetune.shape)
        elif (obstacle := _obstacle(match)) is not None:
            self._skip(match.name, *obstacle, match.finetune.shape)
        else:
            self._compare(match, requested=choice is Choice.REQUESTED)

    def _skip(self, name: str, outcome: Outcome, reason: str, shape: tuple[int, ...]) -> None:
        self.skipped.append(Skipped(name, outcome, reason, shape))

    def _compare(self, match: _Match, *, requested: bool) -> None:
        shape = tuple(map(min, match.base.shape, match.finetune.shape))
        if match.is_resized_vocabulary:
            if have_other_tokens(*self._pieces(match, shape)):
                self._skip(match.name, Outcome.OTHER_TOKENS, Outcome.OTHER_TOKENS.sentence, match.finetune.shape)
                return
            self._skip_extra_rows(match)
        if match.is_stack:
            self._add_slices(match)
        elif (reason := _why_only_summed(match)) is None or (requested and len(shape) == 2):
            self._add_pair(match, match.name, shape)
        else:
            self.summed.append(SummedTensor(match.name, *reason, shape, *self._pieces(match, shape)))

    def _skip_extra_rows(self, match: _Match) -> None:
        base, finetune = match.base.shape[0], match.finetune.shape[0]
        side, first, last = ("finetune", base, finetune) if finetune > base else ("base", finetune, base)
        reason = f"rows {first:,} to {last - 1:,} are only in the {side}, whose vocabulary is larger"
        self._skip(match.name, Outcome.EXTRA_ROWS, reason, (last - first, match.finetune.shape[1]))

    def _add_slices(self, match: _Match) -> None:
        number, rows, columns = match.finetune.shape
        for i in range(number):
            self._add_pair(match, f"{match.name}[{i}]", (rows, columns), skip=i * rows * columns)

    def _add_pair(self, match: _Match, name: str, shape: tuple[int, ...], *, skip: int = 0) -> None:
        pieces = self._pieces(match, shape, skip=skip)
        self.pairs.append(Pair(name, match.location.layer, match.location.module, *pieces))

    def _pieces(self, match: _Match, shape: tuple[int, ...], *, skip: int = 0) -> tuple[Piece, Piece]:
        base_source, finetune_source = self._sources
        matrix_shape = _as_matrix_shape(shape)
        pieces = (
            Piece.from_info(match.base, base_source, matrix_shape, skip=skip),
            Piece.from_info(match.finetune, finetune_source, matrix_shape, skip=skip),
        )
        if is_same_data(*pieces):
            return (pieces[self._preferred_side], pieces[self._preferred_side])
        return pieces


def _as_matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A vector is one row; a convolution has a row for each of its outputs."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def _obstacle(match: _Match) -> tuple[Outcome, str] | None:
    """Why there is no difference to take; None if there is one."""
    for side, info in (("base", match.base), ("finetune", match.finetune)):
        if info.dtype not in FLOAT_DTYPES:
            reason = info.storage.obstacle if info.storage else None
            return (
                Outcome.NOT_FLOATING,
                f"stored as {quoted(info.dtype)} in the {side}: {reason or 'not floating-point weights'}",
            )
    if match.base.shape != match.finetune.shape and not match.is_resized_vocabulary:
        shapes = f"{dimensions(match.base.shape)} in the base, {dimensions(match.finetune.shape)} in the finetune"
        return Outcome.SHAPE_DIFFERS, shapes
    if 0 in (match.base.entries, match.finetune.entries):
        return Outcome.NOT_A_MATRIX, "contains no numbers"
    return None


def _why_only_summed(match: _Match) -> tuple[Outcome, str] | None:
    """Why a tensor is only summed, unless it is a matrix and was requested; None if it is measured."""
    dimension_count = len(match.finetune.shape)
    if match.tie:
        return Outcome.TIED, match.tie
    if match.location.vocabulary and dimension_count == 2:
        return Outcome.EMBEDDING, Outcome.EMBEDDING.sentence
    if dimension_count < 2:
        return Outcome.NOT_A_MATRIX, Outcome.NOT_A_MATRIX.sentence
    if match.location.kind not in _MATRIX_KINDS:
        return Outcome.NOT_A_MATRIX, f"among the {kind_in_words(match.location.kind)}, which a LoRA cannot represent"
    if dimension_count > 2:
        shape = dimensions(match.finetune.shape)
        return Outcome.NOT_A_MATRIX, f"a tensor of {shape}, such as a convolution: not a single matrix"
    return None
