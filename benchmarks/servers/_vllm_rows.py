"""What was measured of each adapter in vLLM, and tables of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import _report
from deltarank.results import FitKind

NOT_READ = ("adapter-unsupported", "adapter-not-lora")
"""Slugs of errors that say what deltarank does not read, and nothing about vLLM."""

NOTHING = ("adapter-empty", "adapter-wrong-base", FitKind.EMPTY)
"""Verdicts that the adapter changes nothing of the base."""


NO_KERNEL = "riton"
"""In errors of vLLM's build for processors, which has no triton: it runs no mixture of experts with LoRA."""


class Group(StrEnum):
    """Which question an adapter asks."""

    EXTRACTED = "extracted"
    ODD = "odd"
    NAMED = "named"


@dataclass
class Row:
    """One adapter. Differences are the largest of log-probabilities; None where one side has none.

    noise       of vLLM from transformers, without an adapter
    effect      of the adapter, in vLLM
    from_peft   of vLLM from transformers with PEFT; of Group.NAMED, with the names that PEFT loads
    from_ours   of vLLM from the model that `verify --server vllm` adds up
    vllm, peft  the error of each that does not load the adapter; "" if it does
    ours        the same, as `verify --server vllm` says
    verdict     of `verify --server vllm`: the kind, or the slug of its error
    """

    group: Group
    model: str
    adapter: str
    noise: float | None = None
    effect: float | None = None
    from_peft: float | None = None
    from_ours: float | None = None
    vllm: str = ""
    peft: str = ""
    ours: str = ""
    verdict: str = ""

    @property
    def tolerance(self) -> float:
        return 5 * (self.noise or 0) + 1e-5

    @property
    def is_exact(self) -> bool:
        return self.from_peft is not None and self.from_peft < self.tolerance

    @property
    def is_as_verify_says(self) -> bool:
        """A verdict of "cannot work" is right where vLLM refuses, or answers otherwise than the figures say."""
        if self.verdict in NOT_READ or self.is_not_run:
            return True
        if self.verdict in NOTHING:
            return not self.vllm and self.effect == 0
        is_as_figures = self.from_ours is not None and self.from_ours < self.tolerance
        if self.verdict == FitKind.BROKEN:
            return not is_as_figures
        return bool(self.vllm and self.ours) if self.vllm or self.ours else is_as_figures

    @property
    def is_not_run(self) -> bool:
        """vLLM's build for processors does not start on this model, for another reason than LoRA."""
        return NO_KERNEL in self.vllm

    @property
    def is_as_claimed(self) -> bool:
        """An adapter by `extract` is exact, or refused by `extract`, too; any other is as `verify` says."""
        return (
            (self.is_exact or bool(self.vllm and self.ours) or self.is_not_run)
            if self.group is Group.EXTRACTED
            else self.is_as_verify_says
        )


def tables(rows: Sequence[Row]) -> str:
    extracted, odd, named = ([row for row in rows if row.group is group] for group in Group)
    headers = ("model", "adapters by `extract`", "effect", "from PEFT", "noise", "served")
    named_headers = ("model", "names of modules", "vLLM", "`verify --server vllm`", "agree")
    odd_headers = ("odd adapter", "model", "vLLM", "PEFT", "`verify --server vllm`", "agree")
    return "\n\n".join(
        (
            _report.table(headers, _extracted_rows(extracted)),
            _report.table(odd_headers, map(_odd_row, odd)),
            _report.table(named_headers, map(_named_row, named)),
        )
    )


def _extracted_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """A row for each model: those that are exact together, and those that are not, by the reason."""
    for model in dict.fromkeys(row.model for row in rows):
        ours = [row for row in rows if row.model == model]
        if exact := [row for row in ours if row.is_exact]:
            effects = [row.effect or 0 for row in exact]
            worst = max(row.from_peft or 0 for row in exact)
            names = ", ".join(row.adapter for row in exact)
            yield (
                model,
                names,
                f"{min(effects):.1f} to {max(effects):.1f}",
                f"{worst:.0e}",
                f"{exact[0].noise:.0e}",
                "exactly",
            )
        others: dict[str, list[str]] = {}
        for row in ours:
            if not row.is_exact:
                others.setdefault(_why_not(row), []).append(row.adapter)
        yield from ((model, ", ".join(names), "", "", "", reason) for reason, names in others.items())


def _why_not(row: Row) -> str:
    if row.vllm:
        return f"{'not run' if row.is_not_run else 'no'}: {_short(row.vllm)}{'; ' + row.ours if row.ours else ''}"
    return f"**differs by {row.from_peft or float('nan'):.1e}**"


def _odd_row(row: Row) -> tuple[str, ...]:
    peft = f"refuses: {_short(row.peft)}" if row.peft else "loads"
    return row.adapter, row.model, _deed(row), peft, _words(row), _agree(row)


def _named_row(row: Row) -> tuple[str, ...]:
    return row.model, row.adapter, _deed(row), _words(row), _agree(row)


def _deed(row: Row) -> str:
    if row.vllm:
        return f"{'not run' if row.is_not_run else 'refuses'}: {_short(row.vllm)}"
    if row.effect == 0:
        return "loads, changes nothing"
    return "loads, as PEFT" if row.is_exact else "loads, otherwise than PEFT"


def _words(row: Row) -> str:
    """The error, or the verdict; where it loads, how far vLLM is from the model that `verify` adds up."""
    if row.from_ours is None:
        return row.verdict
    return f"{row.verdict}, differs by {row.from_ours:.0e}"


def _agree(row: Row) -> str:
    return "yes" if row.is_as_verify_says else "**no**"


def _short(error: str) -> str:
    """The beginning of an error, without the folder, which differs between runs, and the list of modules."""
    if "expected target modules in" in error:
        return f"unexpected module {error.rpartition('received [')[2].split(',')[0]}"
    return _KIND_OF_ERROR.sub("", error)[:80].replace("|", "/")


_KIND_OF_ERROR = re.compile(r"^(\w+Error: )+(.*Value error, )?")
