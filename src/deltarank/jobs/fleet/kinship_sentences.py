"""The kinship of a fleet in words."""

from __future__ import annotations

from collections.abc import Iterator

from deltarank.results import DeltaFit, Kinship, escape, figure, listing, percent, shorten

MOST_NAMED = 5


def kinship_sentences(kinship: Kinship) -> tuple[str, ...]:
    """What stands out, the surest first; then what the cosines are and how exact."""
    return (*_found(kinship), _about(kinship))


def _found(kinship: Kinship) -> Iterator[str]:
    for group in kinship.duplicates:
        same = "have equal sketches and norms" if group.equal else "differ by no more than their rounding explains"
        yield f"{_names(group.names)} {same}: they are the same finetune as far as the matrices were measured."
    for fit in kinship.merges:
        yield f"{_name(fit.name)} is {in_words(fit)}: {_residual(fit)}."
    for fit in kinship.near_merges:
        yield (
            f"{_name(fit.name)} is nearest to {in_words(fit)}, but {_residual(fit)}: a merge that changes or drops "
            "entries, subtracts a part, or has one that is not in the list looks like this, and so does a checkpoint "
            "between the others."
        )
    for names in kinship.other_bases:
        yield f"{_names(names)} are no finetunes of this base by their size, but have another base in common."
    if kinship.unsketched:
        yield (
            f"No cosines of {_names(kinship.unsketched)}: the matrices have no change, or are not those of the others."
        )


def in_words(fit: DeltaFit) -> str:
    """0.37 A + 0.35 B + 0.29 C."""
    return " + ".join(f"{part.weight:.2f} {_name(part.name)}" for part in fit.parts)


def _residual(fit: DeltaFit) -> str:
    text = f"{percent(fit.residual)} of the size of its delta is left over"
    if fit.residual > 0.01 and fit.residual_by_matrix < fit.residual / 2:
        text += f", {percent(fit.residual_by_matrix)} with coefficients of its own for each matrix"
    return text


def _about(kinship: Kinship) -> str:
    return (
        f"Cosines between the deltas are estimated by random projections; the standard error of one near 0 is at most "
        f"{figure(kinship.standard_error)}."
    )


def _names(names: tuple[str, ...]) -> str:
    return listing([_name(name) for name in names], most=MOST_NAMED)


def _name(name: str) -> str:
    return shorten(escape(name))
