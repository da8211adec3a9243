"""Which of several bases a finetune came from: the one that it is nearest to, in a sample of its matrices."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain, zip_longest
from typing import Any

from deltarank.checkpoints import Checkpoint, Pair, open_checkpoint, pair_checkpoints
from deltarank.errors import CheckpointError, JobError, PairingError, UsageError
from deltarank.jobs.compare import UNRELATED
from deltarank.results import Reference, count, listing, percent
from deltarank.runtime import DeltaReader, ProgressListener, SolverOptions, as_tuple
from deltarank.spectra import Sums

__all__ = ["BaseChoice", "BaseKind", "CandidateBase", "which_base"]

Ref = str | os.PathLike[str]

MORE = 4
"""So many times the sample is read where the first does not tell."""

CLEARLY = 1.05
"""The next nearest is so much further away, or more: one number decides."""

EQUAL = 1.001
"""Two norms this near are taken as equal: rounding moves them so far."""

ENOUGH_WINS = 6
"""Nearer in so many matrices and further in none: by luck alone once in 32 times."""


class BaseKind(StrEnum):
    """FOUND: one is nearest. TOO_CLOSE: several are as near. NONE: the nearest is as far as an unrelated model."""

    FOUND = "found"
    TOO_CLOSE = "too_close"
    NONE = "none"


@dataclass(frozen=True)
class CandidateBase:
    """One candidate. `norms` has ||D|| / ||W0|| of each sampled matrix, by its name in the finetune.

    relative_norm    ||D|| / ||W0|| over the sample, energies added up first; None if it could not be compared
    reason           why it could not
    """

    reference: Reference
    relative_norm: float | None = None
    norms: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None

    def to_plain(self) -> dict[str, Any]:
        return {
            "ref": self.reference.ref,
            "revision": self.reference.revision,
            "relative_norm": self.relative_norm,
            "matrices": dict(self.norms),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class BaseChoice:
    """What was found. `base` is the candidate that the finetune came from, if one was found."""

    kind: BaseKind
    sentence: str
    finetune: Reference
    candidates: tuple[CandidateBase, ...]
    base: CandidateBase | None = None
    seed: int = 0

    @property
    def matrices(self) -> int:
        """How many were read of each candidate that could be compared."""
        return max((len(candidate.norms) for candidate in self.candidates), default=0)

    def to_plain(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "base": self.base.reference.ref if self.base else None,
            "sentence": self.sentence,
            "finetune": {"ref": self.finetune.ref, "revision": self.finetune.revision},
            "candidates": [candidate.to_plain() for candidate in self.candidates],
            "seed": self.seed,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_plain(), indent=1, allow_nan=False) + "\n"


def which_base(
    candidates: Sequence[Ref],
    finetune: Ref,
    *,
    revision: str | None = None,
    matrices: int = 8,
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fetch: str = "stream",
    device: str = "cpu",
    progress: ProgressListener | None = None,
) -> BaseChoice:
    """Holds a finetune against each candidate in the same few matrices: ||W - W0|| / ||W0|| is least for its base.

    A finetune lies a few per cent from its base; from an unrelated model of one architecture it lies 1.4 times the
    size of the weights away, for their entries are independent. The matrices are drawn by chance, one module after
    another, among those that all candidates have in one shape. Where the nearest two are close, four times as many
    are read.

    Args:
        candidates, finetune: as for `deltarank.compare`.
        revision: of the finetune, on the Hub.
        matrices: how many to begin with.
        seed: of the draw.
        include, exclude: globs over tensor names to draw from.
        fetch: what becomes of a Hub model that is not in the cache: only the sample is read by "stream".
        progress: is told how it goes.

    Raises:
        UsageError: an argument cannot be meant.
        CheckpointError: the finetune cannot be read.
        JobError: (slug "no-candidate") no candidate can be compared with it.
    """
    settings = _settings(candidates, matrices, device, include, exclude)
    progress = progress or ProgressListener()
    with ExitStack() as stack:
        after = stack.enter_context(open_checkpoint(finetune, revision=revision, fetch=fetch, on_note=progress.noted))
        sides = [_side(ref, after, settings, fetch, progress, stack) for ref in candidates]
        if not any(side.pairs for side in sides):
            raise _no_candidate(sides, after)
        names = _drawn(sides, random.Random(seed))
        reader, kind, base, sentence = DeltaReader(settings), BaseKind.NONE, None, ""
        for number in (matrices, MORE * matrices):
            _read(sides, names[:number], reader, progress, most=MORE * matrices)
            kind, base, sentence = _decided([side.candidate for side in sides], after.reference.short_name)
            if kind is not BaseKind.TOO_CLOSE:
                break
        return BaseChoice(kind, sentence, after.reference, tuple(side.candidate for side in sides), base, seed)


def _settings(
    candidates: Sequence[Ref], matrices: int, device: str, include: Sequence[str], exclude: Sequence[str]
) -> SolverOptions:
    if isinstance(candidates, str | os.PathLike) or not candidates:
        raise UsageError(
            "no list of candidates was given.",
            cure="Give the bases first and the finetune last: --base-candidates A B C FINETUNE.",
            slug="no-candidate",
        )
    if matrices < 1:
        raise UsageError(
            f"a sample of {matrices} matrices was asked for.", cure="Read at least one.", slug="no-candidate"
        )
    return SolverOptions(ranks=(1,), device=device, include=as_tuple(include), exclude=as_tuple(exclude))


@dataclass
class _Side:
    """A candidate while it is being read. No pairs: it cannot be compared."""

    candidate: CandidateBase
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)

    def fail(self, reason: str) -> None:
        self.pairs, self.sums = {}, {}
        self.candidate = CandidateBase(self.candidate.reference, reason=reason)

    def settle(self) -> None:
        """The figures of what was read so far."""
        known = {name: norm for name, each in self.sums.items() if (norm := _norm(each)) is not None}
        self.candidate = replace(self.candidate, relative_norm=_norm(sum(self.sums.values(), Sums())), norms=known)


def _norm(sums: Sums) -> float | None:
    """||D|| / ||W0||; None where no number can say it."""
    ratio = sums.energy / sums.base_energy if sums.base_energy > 0 else math.inf
    return math.sqrt(ratio) if math.isfinite(ratio) else None


def _side(
    ref: Ref, after: Checkpoint, settings: SolverOptions, fetch: str, progress: ProgressListener, stack: ExitStack
) -> _Side:
    """A candidate that is missing, or of another shape, is no reason not to look at the others."""
    side = _Side(CandidateBase(Reference(os.fspath(ref))))
    try:
        before = stack.enter_context(open_checkpoint(ref, fetch=fetch, on_note=progress.noted))
        side.candidate = CandidateBase(before.reference)
        pairing = pair_checkpoints(before, after, include=settings.include, exclude=settings.exclude, experts=True)
        side.pairs = {pair.name: pair for pair in pairing.pairs}
    except (CheckpointError, PairingError) as error:
        side.fail(error.message)
    return side


def _no_candidate(sides: Sequence[_Side], after: Checkpoint) -> JobError:
    reasons = [f"{side.candidate.reference.ref}: {side.candidate.reason}" for side in sides]
    return JobError(
        f"none of the candidates can be compared with {after.reference.ref}. {' '.join(reasons[:3])}",
        cure="Give bases of the finetune's own architecture and size.",
        slug="no-candidate",
    )


def _drawn(sides: Sequence[_Side], random: random.Random) -> list[str]:
    """Names that all comparable candidates have, one module after another, each module in an order drawn by chance."""
    known = [side.pairs for side in sides if side.pairs]
    most: Mapping[str, Pair] = max(known, key=len)
    common = set.intersection(*(set(pairs) for pairs in known)) or set(most)
    modules: dict[str, list[str]] = {}
    for name in sorted(common):
        modules.setdefault(next(pairs[name].module for pairs in known if name in pairs), []).append(name)
    columns = list(modules.values())
    random.shuffle(columns)
    for column in columns:
        random.shuffle(column)
    return [name for name in chain.from_iterable(zip_longest(*columns)) if name is not None]


def _read(
    sides: Sequence[_Side], names: Sequence[str], reader: DeltaReader, progress: ProgressListener, *, most: int
) -> None:
    """The sums of these matrices that are not known yet. One that is not finite is read, and not counted."""
    started = time.perf_counter()
    for done, name in enumerate(names, start=1):
        for side in sides:
            if name in side.sums or name not in side.pairs:
                continue
            progress.began(f"{name} of {side.candidate.reference.short_name}")
            try:
                side.sums[name] = reader.sums(side.pairs[name])
            except CheckpointError as error:
                side.fail(error.message)
        pace = (time.perf_counter() - started) / done
        progress.finished(name, pace * (len(names) - done), done / most)
    _set_aside(sides)


def _set_aside(sides: Sequence[_Side]) -> None:
    """A candidate that holds NaN or Inf fails; a matrix in which the finetune does counts for nobody."""
    for side in sides:
        if not all(math.isfinite(sums.base_energy) for sums in side.sums.values()):
            side.fail("it holds NaN or Inf")
    bad = {name for side in sides for name, sums in side.sums.items() if not sums.is_finite}
    for side in sides:
        side.sums |= dict.fromkeys(bad & side.sums.keys(), Sums())
        if side.pairs:
            side.settle()


def _decided(candidates: Sequence[CandidateBase], name: str) -> tuple[BaseKind, CandidateBase | None, str]:
    usable = [each for each in candidates if each.relative_norm is not None]
    if not usable:
        return BaseKind.NONE, None, f"Nothing in the sample tells which of these is the base of {name}."
    nearest, *others = sorted(usable, key=_distance)
    sample = count(len(nearest.norms), "matrix", "matrices")
    if _distance(nearest) >= UNRELATED:
        return BaseKind.NONE, None, _none_sentence(nearest, name, sample, alone=len(candidates) == 1)
    close = [other for other in others if not _is_nearer(nearest, other)]
    if close:
        return BaseKind.TOO_CLOSE, None, _close_sentence([nearest, *close], name, sample)
    next_one = f"; from the next, {others[0].reference.ref}, by {percent(others[0].relative_norm)}" if others else ""
    sentence = (
        f"{name} came from {nearest.reference.ref}: in {sample} drawn by chance it differs from it by "
        f"{percent(nearest.relative_norm)} of the base's size{next_one}."
    )
    return BaseKind.FOUND, nearest, sentence


def _distance(candidate: CandidateBase) -> float:
    return math.inf if candidate.relative_norm is None else candidate.relative_norm


def _is_nearer(one: CandidateBase, other: CandidateBase) -> bool:
    """Clearly, or by little and in matrix after matrix."""
    both = [(norm, other.norms[name]) for name, norm in one.norms.items() if name in other.norms]
    wins = sum(theirs > EQUAL * ours for ours, theirs in both)
    losses = sum(ours > EQUAL * theirs for ours, theirs in both)
    if _distance(other) > CLEARLY * _distance(one):
        return wins > losses
    return wins >= ENOUGH_WINS and not losses


def _none_sentence(nearest: CandidateBase, name: str, sample: str, *, alone: bool) -> str:
    ref = nearest.reference.ref
    far = f"by {percent(nearest.relative_norm)} of the weights' own size in {sample} drawn by chance"
    if alone:
        return f"{ref} is not the base of {name}: they differ {far}, as unrelated models do."
    return (
        f"None of these is the base of {name}: even the nearest, {ref}, differs from it {far}, as unrelated models do."
    )


def _close_sentence(close: Sequence[CandidateBase], name: str, sample: str) -> str:
    names = listing([each.reference.ref for each in close], most=4)
    if all(each.norms == close[0].norms for each in close):
        return (
            f"Too close to tell: {names} are equally far from {name} in each of {sample} ({_range(close)} of the "
            "base's size), as copies of one model are. Any of them serves as the base."
        )
    return (
        f"Too close to tell: {names} are about equally far from {name} ({_range(close)} of the base's size, in "
        f"{sample}). A merge is as near to each of its parts."
    )


def _range(close: Sequence[CandidateBase]) -> str:
    low, high = (percent(pick(map(_distance, close))) for pick in (min, max))
    return low if low == high else f"{low} to {high}"


def table(choice: BaseChoice) -> Iterator[tuple[str, str, str]]:
    """(candidate, its relative norm, that of single matrices), the nearest first, then why others are not compared."""
    for each in sorted(choice.candidates, key=_distance):
        if each.relative_norm is None:
            yield each.reference.ref, "", f"not compared: {each.reason or 'its sample holds no finite numbers'}"
        else:
            norms = sorted(each.norms.values())
            spread = f"{percent(norms[0])} to {percent(norms[-1])}" if norms else ""
            yield each.reference.ref, percent(each.relative_norm), spread
