"""The verdict on a merged checkpoint, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from deltarank.adapters import Unloaded, UnusedTensor
from deltarank.results import (
    HELD,
    MergedTensor,
    MergeFit,
    MergeKind,
    Skipped,
    Unpaired,
    count,
    figure,
    listing,
    other_share,
    percent,
)

_SAME = 0.02
"""Strengths that differ by less are one strength."""


def judge_merge(
    rows: Sequence[MergedTensor],
    skipped: Sequence[Skipped],
    harmful: Sequence[UnusedTensor],
    unloaded: Unloaded | None,
    *,
    merged: str,
    adapter: str,
    unpaired: Unpaired,
) -> tuple[MergeKind, float | None, tuple[str, ...]]:
    """The kind, the strength in most tensors, and the sentences.

    Args:
        harmful: what of the adapter's file keeps PEFT from loading it as it is.
        unloaded: the LoRAs of its file that PEFT ignores; None if there are none.
        merged, adapter: what a reader calls the two.
        unpaired: what could not be compared.
    """
    touched = [row for row in rows if row.is_touched and row.fit is not None]
    decided = [row for row in touched if row.fit is not MergeFit.VANISHED]
    held = [row for row in decided if row.fit in HELD]
    others = [row for row in rows if row.is_other_change]
    strength = median([row.strength for row in held if row.strength is not None]) if held else None
    kind = _kind(decided, held, others)
    [headline] = _HEADLINES[kind](merged, adapter, decided or touched, held, strength)
    sentences = [
        _without_unpaired(headline, kind, unpaired),
        *_replays(held),
        *_strengths(held, strength),
        *_absent(decided, held),
        *_others(rows, others),
        *_vanished(touched, decided),
        *_not_compared(rows, skipped),
        *_harm(harmful),
        *(() if unloaded is None else (f"{unloaded.sentence} {unloaded.cure}",)),
    ]
    return kind, strength, tuple(sentences)


def _kind(decided: Sequence[MergedTensor], held: Sequence[MergedTensor], others: Sequence[MergedTensor]) -> MergeKind:
    if not decided:
        return MergeKind.INCONCLUSIVE
    if not held:
        return MergeKind.ABSENT
    if len(held) < len(decided):
        return MergeKind.PART
    if others:
        return MergeKind.WITH_OTHER_CHANGES
    fits = {row.fit for row in held}
    if fits == {MergeFit.EXACT}:
        return MergeKind.EXACT
    return MergeKind.STRENGTH if MergeFit.STRENGTH in fits else MergeKind.ROUNDING


def _without_unpaired(headline: str, kind: MergeKind, unpaired: Unpaired) -> str:
    """The sentence with the share of the parameters that it does not speak of."""
    is_all = kind in (MergeKind.EXACT, MergeKind.ROUNDING, MergeKind.STRENGTH)
    remark = unpaired.remark(0.0 if is_all else 1.0)
    if not remark or kind is MergeKind.INCONCLUSIVE:
        return headline
    headline = headline.replace("no other changed", "no other that could be compared changed")
    return headline.removesuffix(".") + f"{remark}."


def _say_exact(
    merged: str, adapter: str, touched: Sequence[MergedTensor], held: Sequence[MergedTensor], strength: float | None
) -> Iterator[str]:
    where = f"{_tensors(len(held))} that the adapter changes"
    yield f"{merged} holds {adapter} exactly: {where} {_is(held)} bit for bit what a merge gives, and no other changed."


def _say_rounding(
    merged: str, adapter: str, touched: Sequence[MergedTensor], held: Sequence[MergedTensor], strength: float | None
) -> Iterator[str]:
    known = [row.deviation for row in held if row.deviation is not None]
    bound = f", by at most {figure(max(known))} units in the last place" if known else ""
    if len(known) < len(held):
        bound = ", that of a quantised format included"
    yield (
        f"{merged} holds {adapter} up to rounding: {_tensors(len(held))} that the adapter changes "
        f"{'differs' if len(held) == 1 else 'differ'} from a merge by no more than rounding explains{bound}."
    )


def _say_strength(
    merged: str, adapter: str, touched: Sequence[MergedTensor], held: Sequence[MergedTensor], strength: float | None
) -> Iterator[str]:
    if strength is not None and _is_one_strength(held, strength):
        subtracted = ": it was subtracted" if strength < 0 else ""
        yield f"{merged} holds {adapter} with strength {figure(strength)} instead of 1{subtracted}."
    else:
        yield f"{merged} holds {adapter} with strengths that differ between tensors."


def _say_others(
    merged: str, adapter: str, touched: Sequence[MergedTensor], held: Sequence[MergedTensor], strength: float | None
) -> Iterator[str]:
    yield f"{merged} holds {adapter}{_how(held, strength or 0.0)}, and something else changed, too."


def _how(held: Sequence[MergedTensor], strength: float) -> str:
    fits = {row.fit for row in held}
    if fits == {MergeFit.EXACT}:
        return " exactly"
    if MergeFit.STRENGTH in fits:
        is_one = _is_one_strength(held, strength)
        return f" with strength {figure(strength)}" if is_one else " with strengths that differ between tensors"
    if MergeFit.MIXED in fits:
        return "" if abs(strength - 1) <= _SAME else f" with a strength of about {figure(strength)}"
    return " up to rounding"


def _say_part(
    merged: str, adapter: str, touched: Sequence[MergedTensor], held: Sequence[MergedTensor], strength: float | None
) -> Iterator[str]:
    yield (
        f"{merged} holds a part of {adapter}: it is in {len(held):,} of {_tensors(len(touched))} that the adapter "
        f"changes ({_places(held, [row for row in touched if row not in held])})."
    )


def _say_absent(
    merged: str, adapter: str, touched: Sequence[MergedTensor], held: Sequence[MergedTensor], strength: float | None
) -> Iterator[str]:
    same = sum(row.energy == 0 for row in touched)
    rest = f"; in {same:,} of them the base's numbers are unchanged" if same else ""
    yield f"{merged} does not hold {adapter}: it is in none of {_tensors(len(touched))} that the adapter changes{rest}."


def _say_inconclusive(
    merged: str, adapter: str, touched: Sequence[MergedTensor], held: Sequence[MergedTensor], strength: float | None
) -> Iterator[str]:
    if touched:
        yield (
            f"Inconclusive: whether {merged} holds {adapter} cannot be told, because the adapter's change is below the "
            f"rounding in {_all(len(touched))} that it changes: a merge can leave the base's numbers there."
        )
    else:
        yield f"Inconclusive: no tensor that {adapter} changes could be compared."


_HEADLINES = {
    MergeKind.EXACT: _say_exact,
    MergeKind.ROUNDING: _say_rounding,
    MergeKind.STRENGTH: _say_strength,
    MergeKind.WITH_OTHER_CHANGES: _say_others,
    MergeKind.PART: _say_part,
    MergeKind.ABSENT: _say_absent,
    MergeKind.INCONCLUSIVE: _say_inconclusive,
}


def _tensors(number: int) -> str:
    return f"the {count(number, 'tensor')}"


def _all(number: int) -> str:
    return "the only tensor" if number == 1 else f"all {count(number, 'tensor')}"


def _is(rows: Sequence[MergedTensor]) -> str:
    return "is" if len(rows) == 1 else "are"


def _is_one_strength(rows: Sequence[MergedTensor], strength: float) -> bool:
    return all(abs((row.strength or 0.0) / strength - 1) <= _SAME for row in rows)


def _places(rows: Sequence[MergedTensor], others: Sequence[MergedTensor]) -> str:
    """The layers or modules of the rows, such that none of the others is meant by them."""
    layers = list(dict.fromkeys(row.layer for row in rows if row.layer is not None))
    if all(row.layer is not None for row in rows) and not {row.layer for row in others} & set(layers):
        return _layers(layers)
    modules: dict[str, list[int]] = {}
    for row in rows:
        modules.setdefault(row.module, []).extend([] if row.layer is None else [row.layer])
    shared = {row.module for row in others}
    named = [f"{module} in {_layers(at)}" if at and module in shared else module for module, at in modules.items()]
    return listing(named, most=4)


def _layers(numbers: Sequence[int]) -> str:
    return f"layer{'s' * (len(numbers) > 1)} {listing([str(number) for number in sorted(numbers)])}"


def _replays(held: Sequence[MergedTensor]) -> Iterator[str]:
    """How it was merged, where that is known bit for bit."""
    ways = Counter(row.replay for row in held if row.mismatches == 0 and row.replay)
    if ways:
        names = listing([f"{name} ({number:,})" for name, number in ways.most_common()], most=4)
        yield f"Bit for bit equal to {names}: {sum(ways.values()):,} of {_tensors(len(held))} that hold it."


def _strengths(held: Sequence[MergedTensor], strength: float | None) -> Iterator[str]:
    odd = [row for row in held if row.fit is MergeFit.STRENGTH]
    if not odd or (strength is not None and _is_one_strength(held, strength)):
        return
    names = listing([f"{row.name} {figure(row.strength)}" for row in odd], most=4)
    yield f"In {count(len(odd), 'tensor')} the strength is not 1: {names}."


def _absent(decided: Sequence[MergedTensor], held: Sequence[MergedTensor]) -> Iterator[str]:
    missing = [row for row in decided if row not in held]
    if held and missing:
        hold = "does not hold" if len(missing) == 1 else "do not hold"
        names = listing([row.name for row in missing], most=4)
        yield f"{count(len(missing), 'tensor')} {hold} it{_equal_to_base(missing)}: {names}."


def _equal_to_base(missing: Sequence[MergedTensor]) -> str:
    same, number = sum(row.energy == 0 for row in missing), len(missing)
    if not same:
        return ""
    if number == 1:
        return "; it is equal to the base's"
    which = f"all {same:,} are" if same == number else f"{same:,} of them {'is' if same == 1 else 'are'}"
    return f"; {which} equal to the base's"


def _others(rows: Sequence[MergedTensor], others: Sequence[MergedTensor]) -> Iterator[str]:
    if not others:
        return
    outside = sorted((row for row in others if not row.is_touched), key=lambda row: -row.energy)
    mixed = sorted((row for row in others if row.is_touched), key=lambda row: -row.residual)
    if outside:
        names = listing([row.name for row in outside], most=4)
        yield f"{count(len(outside), 'tensor')} changed that the adapter does not change: {names}."
    if mixed:
        names = listing([row.name for row in mixed], most=4)
        has = "has" if len(mixed) == 1 else "have"
        yield f"{count(len(mixed), 'tensor')} that the adapter changes {has} a further change: {names}."
    if any(row.fit in HELD for row in rows):
        yield f"{percent(other_share(rows))} of the change from the base does not come from this adapter."
    else:
        yield "None of the change from the base comes from this adapter."


def _vanished(touched: Sequence[MergedTensor], decided: Sequence[MergedTensor]) -> Iterator[str]:
    number = len(touched) - len(decided)
    if decided and number:
        yield (
            f"In {count(number, 'further tensor')} the adapter's change is below the rounding, so that nothing can be "
            "told there."
        )


def _not_compared(rows: Sequence[MergedTensor], skipped: Sequence[Skipped]) -> Iterator[str]:
    failed = [row for row in rows if not row.is_compared]
    names = [*(row.name for row in failed), *(each.name for each in skipped)]
    if names:
        reason = failed[0].reason if failed else skipped[0].reason
        yield f"{count(len(names), 'tensor')} could not be compared: {listing(names, most=3)} ({reason})."


def _harm(harmful: Sequence[UnusedTensor]) -> Iterator[str]:
    if harmful:
        yield (
            f"PEFT does not load this adapter as it is: {harmful[0].name}: {harmful[0].reason}. The verdict is on its "
            f"other tensors.{' ' if harmful[0].cure else ''}{harmful[0].cure}"
        )
