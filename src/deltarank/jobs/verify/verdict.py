"""The verdict on an adapter, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltarank.adapters import SAVE_AGAIN, LoadEffect, Unloaded, UnusedTensor
from deltarank.jobs.verify.uncounted import is_broken, unused_sentences
from deltarank.results import (
    FitEnergies,
    FitKind,
    IgnoredTensor,
    TensorChange,
    TensorFit,
    Unpaired,
    compared_energies,
    count,
    figure,
    listing,
    percent,
    percent_kept,
    touched_energies,
)

STRANGE = 0.01
"""If the best multiple of L keeps less than this share of what the best LoRA keeps, L belongs to other models."""

SAME_DIRECTION = 0.75
"""From this share on, the direction of L is right, and a different length is a wrong scale."""

OFF_SCALE = 0.03
"""Mistakes with alpha and rank change the scale by more; rounding, and training that stopped early, by less."""

NOTHING_KEPT = 1.005
"""From this share of the change lost, an adapter moves away from the finetune. At 1 it keeps nothing."""

NEW_BIAS = "neither checkpoint has a bias there"

NEAR = ((1e-4, "0.01"), (1e-3, "0.1"), (1e-2, "1"))


def judge_fit(
    rows: Sequence[TensorFit],
    unused: Sequence[IgnoredTensor],
    harmful: Sequence[UnusedTensor],
    unloaded: Unloaded | None,
    *,
    name: str,
    server: str | None,
    made_for: str,
    unpaired: Unpaired,
    calibrated: bool = False,
) -> tuple[FitKind, tuple[str, ...]]:
    """The verdict over an adapter.

    Args:
        harmful: what of its file keeps the rest from being loaded as it is.
        unloaded: the LoRAs of its file that its reader ignores; None if there are none.
        name: what a reader calls it.
        server: whose semantics it was applied by.
        made_for: the base that its configuration names, or "".
        unpaired: what no figure covers.
        calibrated: whether its factors were fitted to predictions, so that they need not fit the weights.
    """
    whole, touched = compared_energies(rows), touched_energies(rows)
    subject = f"As {server} {'applies' if server == 'PEFT' else 'serves'} it, {name}" if server else name
    if harmful:
        return FitKind.BROKEN, tuple(_harm(subject, harmful))
    if unloaded is not None and not any(row.is_touched for row in rows):
        return FitKind.UNLOADED, (f"{unloaded.sentence} {subject} changes nothing.", unloaded.cure)
    kind = _kind(rows, whole, touched)
    if calibrated and kind in (FitKind.SHORT, FitKind.MISSCALED, FitKind.OPTIMAL):
        kind = FitKind.CALIBRATED
    headline, *more = _HEADLINES[kind](subject, rows, whole, touched)
    if kind is FitKind.NOTHING and not unpaired.can_be_equal:
        headline = f"The finetune has {unpaired.no_change_in()}; {subject} {_adds(whole)}."
    elif kind is not FitKind.BROKEN:
        headline = _without_unpaired(headline, unpaired)
    sentences = [headline, *more]
    if unloaded is not None:
        sentences[:0] = [f"{unloaded.sentence} {unloaded.cure}"]
    if kind is FitKind.STRANGER and made_for:
        sentences.append(f"Its adapter_config.json names {made_for} as its base.")
    if kind in (FitKind.OPTIMAL, FitKind.SHORT, FitKind.MISSCALED):
        sentences += [*_scales(rows, touched), *_whole(rows, whole), *_new_biases(rows, whole)]
    return kind, (*sentences, *unused_sentences(unused))


def _kind(rows: Sequence[TensorFit], whole: FitEnergies, touched: FitEnergies) -> FitKind:
    if _broken(rows):
        return FitKind.BROKEN
    if whole.energy == 0:
        return FitKind.NOTHING
    if whole.added == 0:
        return FitKind.EMPTY
    if touched.added > 0 and _is_stranger(touched):
        return FitKind.STRANGER
    if sum(row.energies.energy for row in _misscaled(rows)) >= 0.05 * touched.energy > 0:
        return FitKind.MISSCALED
    is_near = (touched.excess or 0.0) <= NEAR[-1][0] or _is_rounding(touched)
    return FitKind.OPTIMAL if is_near else FitKind.SHORT


def _is_rounding(touched: FitEnergies) -> bool:
    """Whether W0 + L, rounded to the dtype of the finetune, is the finetune or nearly so."""
    return touched.rounded_lost is not None and touched.rounded_lost <= NEAR[-1][0] * min(touched.lost, touched.energy)


_HARMS = {
    LoadEffect.REFUSED: "PEFT refuses an adapter with such a tensor; the figures are those of the other tensors.",
    LoadEffect.RANDOM: "PEFT puts random numbers in its place, others at each load; the figures leave them out.",
}


def _harm(subject: str, harmful: Sequence[UnusedTensor]) -> Iterator[str]:
    first = harmful[0]
    more = f" (and {count(len(harmful) - 1, 'other tensor')} like it)" if len(harmful) > 1 else ""
    yield f"{subject} cannot work: {first.name}: {first.reason}{more}."
    yield f"{_HARMS[first.effect]} {first.cure or SAVE_AGAIN}"


def _broken(rows: Sequence[TensorFit]) -> list[TensorFit]:
    return [row for row in rows if is_broken(row)]


def _is_stranger(energies: FitEnergies) -> bool:
    explained = energies.explained
    return explained is None or explained <= STRANGE * _possible(energies)


def _possible(energies: FitEnergies) -> float:
    """The share of the energy that the best LoRA keeps, 1 where that is not known."""
    return 1.0 - (energies.share_best or 0.0)


def _misscaled(rows: Sequence[TensorFit]) -> list[TensorFit]:
    """The matrices in which L has the right direction and the wrong length."""
    return [row for row in rows if row.is_compared and row.change is TensorChange.LORA and _is_misscaled(row.energies)]


def _is_misscaled(energies: FitEnergies) -> bool:
    factor, explained = energies.scaled_by, energies.explained
    if factor is None or explained is None or explained < SAME_DIRECTION * _possible(energies):
        return False
    return abs(factor - 1) > OFF_SCALE


def _say_fit(subject: str, rows: Sequence[TensorFit], whole: FitEnergies, touched: FitEnergies) -> Iterator[str]:
    number = sum(1 for row in rows if row.is_compared and row.change is TensorChange.LORA)
    if not number or touched.share_lost is None:
        yield f"{subject} has no LoRA on a matrix that finetuning changed."
        return
    where = f"the {count(number, 'matrix that has', 'matrices that have')} a LoRA"
    share_best = touched.share_best
    best = "" if share_best is None else f"the best LoRA of the same rank keeps {percent_kept(share_best)}"
    if touched.share_lost > NOTHING_KEPT:
        yield (
            f"{subject} moves the base away from the finetune: the remaining difference in {where} has "
            f"{figure(touched.share_lost)} times the energy of the change there{'; ' + best if best else ''}."
        )
        return
    excess = touched.excess or 0.0
    if touched.share_lost >= 0.001 and _is_rounding(touched):
        share = "all" if touched.rounded_lost == 0 else "over 99 %"
        yield (
            f"{subject} {_keeps(touched.share_lost)} of what finetuning changed in {where}, and rounding W0 + L to the "
            f"finetune's dtype explains {share} of the rest{'; ' + best if best else ''}."
        )
        return
    near = next((f"within {words} % of optimal" for most, words in NEAR if excess <= most), None)
    verdict = near or f"{percent(excess)} of the change short of optimal"
    tail = f"{best}: {verdict}" if best else "how much the best LoRA would keep was not computed"
    yield f"{subject} {_keeps(touched.share_lost)} of what finetuning changed in {where}; {tail}."


def _keeps(share_lost: float) -> str:
    if share_lost > NOTHING_KEPT:
        return "moves the base away from the finetune"
    return _keeps_some(share_lost)


def _say_broken(subject: str, rows: Sequence[TensorFit], whole: FitEnergies, touched: FitEnergies) -> Iterator[str]:
    broken = _broken(rows)
    yield (
        f"{subject} cannot work: {count(len(broken), 'tensor')} would contain NaN or Inf "
        f"({listing([row.name for row in broken], most=3)}), and so would everything that the model predicts."
    )


def _adds(whole: FitEnergies) -> str:
    return "changes nothing either" if whole.added == 0 else "does change it"


def _without_unpaired(headline: str, unpaired: Unpaired) -> str:
    """The sentence with the share of the parameters that it does not speak of."""
    says_all = "keeps 100 %" in headline
    remark = unpaired.remark(0.0 if says_all else 1.0)
    if not remark:
        return headline
    return headline.replace("keeps 100 %", "keeps all").removesuffix(".") + f"{remark}."


def _say_nothing(subject: str, rows: Sequence[TensorFit], whole: FitEnergies, touched: FitEnergies) -> Iterator[str]:
    yield f"The finetune equals the base; {subject} {_adds(whole)}."


def _say_empty(subject: str, rows: Sequence[TensorFit], whole: FitEnergies, touched: FitEnergies) -> Iterator[str]:
    yield f"{subject} changes nothing: all that it adds is zero."


def _say_stranger(subject: str, rows: Sequence[TensorFit], whole: FitEnergies, touched: FitEnergies) -> Iterator[str]:
    yield (
        f"{subject} does not belong to this base and finetune: what it adds has nothing in common with what finetuning "
        f"changed (cosine {figure(touched.cosine, unknown='not defined: nothing changed there')})."
        if (touched.cosine or 0.0) > -0.1
        else f"{subject} adds the opposite of what finetuning changed (cosine {figure(touched.cosine)}): it does not "
        "belong to this base and finetune, or the two were exchanged."
    )


def _say_calibrated(subject: str, rows: Sequence[TensorFit], whole: FitEnergies, touched: FitEnergies) -> Iterator[str]:
    ours, theirs = _keeps_some(whole.share_lost or 0.0), _keeps_some(touched.share_lost or 0.0)
    yield (
        f"{subject} is calibrated: its factors were fitted to the finetune's predictions, not to its weights. Of the "
        f"change in the weights it {ours}."
    )
    if touched.share_best is not None:
        best = f"the best LoRA of its ranks keeps {percent_kept(touched.share_best)}"
        both = f"{best} of the change" if ours == theirs else f"it {theirs} of the change, and {best}"
        yield f"In the matrices that it changes, {both}."
    yield (
        "`deltarank outputs --adapter` measures how near its predictions are to the finetune's; its model card has "
        "the distances that the calibration measured."
    )


def _keeps_some(share_lost: float) -> str:
    return f"keeps {percent_kept(share_lost)}" if share_lost < 1 else "keeps nothing"


_HEADLINES = {
    FitKind.BROKEN: _say_broken,
    FitKind.NOTHING: _say_nothing,
    FitKind.EMPTY: _say_empty,
    FitKind.STRANGER: _say_stranger,
    FitKind.MISSCALED: _say_fit,
    FitKind.OPTIMAL: _say_fit,
    FitKind.SHORT: _say_fit,
    FitKind.CALIBRATED: _say_calibrated,
}


def _scales(rows: Sequence[TensorFit], touched: FitEnergies) -> Iterator[str]:
    wrong = _misscaled(rows)
    if not wrong:
        return
    factors = sorted(row.energies.scaled_by or 1.0 for row in wrong)
    share = sum(row.energies.energy for row in wrong) / touched.energy
    factor = touched.scaled_by
    if factor and factors[-1] <= (1 + OFF_SCALE) * factors[0] and share > 0.9:
        yield f"Its scale is wrong by a factor of {figure(factor)}{_multiplied(wrong, factor)}."
        lost = max(1.0 - (touched.explained or 0.0), touched.share_best or 0.0)  # a cosine of 1 is one up to rounding
        yield f"With the right scale it would keep {percent_kept(lost)} in these matrices."
        return
    spread = f", by factors of {figure(factors[0])} to {figure(factors[-1])}" if len(wrong) > 1 else ""
    names = listing([f"{row.name} by {figure(row.energies.scaled_by)}" for row in _worst(wrong)], most=3)
    yield f"{count(len(wrong), 'matrix has', 'matrices have')} a wrong scale{spread}: {names}."


def _multiplied(wrong: Sequence[TensorFit], factor: float) -> str:
    """The scale that is applied and the one that fits best, if one holds for all matrices."""
    scales = {row.scale for row in wrong}
    if len(scales) != 1:
        return ""
    scale = scales.pop() or 0.0
    return f": B A is multiplied by {figure(scale)}, and {figure(scale / factor)} fits best"


def _worst(wrong: Sequence[TensorFit]) -> list[TensorFit]:
    return sorted(wrong, key=lambda row: -row.energies.energy * abs((row.energies.scaled_by or 1.0) - 1.0))


def _whole(rows: Sequence[TensorFit], whole: FitEnergies) -> Iterator[str]:
    alone = [row for row in rows if row.is_compared and not row.is_touched and row.energies.energy > 0]
    carried = [row for row in rows if row.is_compared and row.change is TensorChange.WHOLE and row.energies.energy > 0]
    if whole.share_lost is None or not (alone or carried):
        return
    if not alone:
        names = listing(_modules(carried), most=4)
        whole_tensors = f"{count(len(carried), 'tensor')} stored whole ({names})"
        yield f"Of the whole change, it {_keeps(whole.share_lost)}, with {whole_tensors}."
        return
    share = sum(row.energies.energy for row in alone) / whole.energy
    rest = f"{count(len(alone), 'tensor')} that it does not change ({listing(_modules(alone), most=4)})"
    if whole.share_lost > NOTHING_KEPT:
        yield f"{percent(share)} of the whole change lies in {rest}."
    else:
        yield f"Of the whole change, it {_keeps(whole.share_lost)}; {percent(share)} lies in {rest}."


def _modules(rows: Sequence[TensorFit]) -> list[str]:
    """The largest change first."""
    return list(dict.fromkeys(row.module for row in sorted(rows, key=lambda row: -row.energies.energy)))


def _new_biases(rows: Sequence[TensorFit], whole: FitEnergies) -> Iterator[str]:
    new = [row for row in rows if row.reason == NEW_BIAS and row.is_touched]
    if new and whole.energy > 0:
        share = sum(row.energies.added for row in new) / whole.energy
        modules = listing(list(dict.fromkeys(row.module for row in new)), most=4)
        size = percent(share) if share <= 1 else f"{figure(share)} times"
        yield (
            f"It adds {count(len(new), 'bias', 'biases')} where neither checkpoint has one ({modules}), with {size} "
            "the energy of the whole change."
        )
