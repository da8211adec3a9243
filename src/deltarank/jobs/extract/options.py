"""The options of `extract`, checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch

from deltarank.checkpoints import Pairing
from deltarank.errors import JobError, UsageError
from deltarank.results import Total, figure
from deltarank.runtime import InputKeywords, SolverOptions, as_tuple, check_choice, is_number
from deltarank.servers import DEFAULT_SERVER, Server, get_server
from deltarank.system import Default

AUTO = "auto"
FACTOR_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class ExtractKeywords(InputKeywords, total=False):
    """The keywords of `deltarank.extract` and `deltarank.plan_extraction`; `ExtractOptions` says what they mean."""

    rank: int | str | None
    max_error: float | None
    server: str
    dtype: str | None
    device: str
    include: Sequence[str]
    exclude: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Two extractions with equal options on equal inputs write equal adapters.

    rank       of the adapter; "auto": the smallest servable rank with a relative error of at most `max_error`; None:
               "auto" with `max_error`, else 64
    max_error  ||D - D_r|| / ||D|| over all extracted matrices; not with a given rank
    server     the server whose rules the adapter follows; "portable": the rules of all of them
    dtype      of A and B: "bfloat16", "float16" or "float32"; None: the dtype of most weights of the finetune
    device     where to compute: "cpu", "cuda", "cuda:1", "mps"
    include    globs over tensor names; a tensor that matches is extracted if the server can load it
    exclude    globs over tensor names to leave out; these win over `include`

    Raises:
        UsageError: a value is not usable.
    """

    rank: int | str | None = None
    max_error: float | None = None
    server: str = DEFAULT_SERVER
    dtype: str | None = None
    device: str = Default.DEVICE
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank is None:
            object.__setattr__(self, "rank", Default.ADAPTER_RANK if self.max_error is None else AUTO)
        rules = self.rules
        if self.dtype is not None:
            check_choice("dtype", self.dtype, tuple(FACTOR_DTYPES))
        _check_rank(self.rank, rules)
        _check_max_error(self.fixed_rank, self.max_error)
        solver_options = self.solver_options
        for name in ("device", "include", "exclude"):  # normalised and checked there; this dataclass is frozen
            object.__setattr__(self, name, getattr(solver_options, name))

    @cached_property
    def rules(self) -> Server:
        """The rules of the server."""
        return get_server(self.server)

    @property
    def fixed_rank(self) -> int | None:
        """None with "auto"."""
        return self.rank if isinstance(self.rank, int) else None

    @cached_property
    def solver_options(self) -> SolverOptions:
        """How matrices are measured. With "auto", at every rank that may be chosen."""
        return SolverOptions(
            ranks=(self.fixed_rank,) if self.fixed_rank else tuple(self.rules.candidate_ranks),
            solver="exact",
            device=self.device,
            include=as_tuple(self.include),
            exclude=as_tuple(self.exclude),
        )

    def to_plain(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def factor_dtype(self, pairing: Pairing) -> torch.dtype:
        """The dtype of A and B."""
        if self.dtype is not None:
            return FACTOR_DTYPES[self.dtype]
        entries: dict[torch.dtype, int] = {}
        for pair in pairing.pairs:
            # Quantised weights are read as float32, a precision that they do not have.
            dtype = torch.bfloat16 if pair.finetune.storage else pair.finetune.dtype
            entries[dtype] = entries.get(dtype, 0) + pair.entries
        most = max(entries, key=lambda dtype: entries[dtype])
        return most if most in FACTOR_DTYPES.values() else torch.float32

    def smallest_servable_rank(self, totals: Total) -> int:
        """The smallest rank of `totals` with a relative error of at most `max_error`.

        Raises:
            JobError: (slug "no-servable-rank") there is none.
        """
        assert self.max_error is not None
        losses = sorted(totals.losses, key=lambda loss: loss.rank)
        for loss in losses:
            if loss.relative_error <= self.max_error:
                return loss.rank
        last = losses[-1]
        reachable = math.ceil(100 * last.relative_error) / 100
        raise JobError(
            f"Even rank {last.rank}, the largest for {self.rules.title}, has a relative error of "
            f"{figure(last.relative_error)}; --max-error is {figure(self.max_error)}.",
            cure=(f"Use --max-error {reachable:g}, or c" if reachable < 1 else "C") + "hoose a rank with --rank.",
            slug="no-servable-rank",
        )


def _check_rank(rank: int | str | None, rules: Server) -> None:
    if rank == AUTO:
        return
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UsageError(
            f"{rank!r} is not a rank; a rank is a whole number from 1, or {AUTO!r}.",
            cure="Give a rank such as 64.",
            slug="bad-ranks",
        )
    rules.check_rank(rank)


def _check_max_error(fixed_rank: int | None, max_error: float | None) -> None:
    if fixed_rank is None and max_error is None:
        raise UsageError(
            "--rank auto needs --max-error.",
            cure="Give the largest acceptable relative error, ||D - D_r|| / ||D|| over all extracted matrices, "
            "such as --max-error 0.3.",
            slug="bad-max-error",
        )
    if fixed_rank is not None and max_error is not None:
        raise UsageError(
            f"--max-error cannot be combined with a given rank, here {fixed_rank}.",
            cure="Use --rank auto, or leave out --max-error.",
            slug="bad-max-error",
        )
    if max_error is not None and not (is_number(max_error) and 0 < max_error < 1):
        raise UsageError(
            f"--max-error is {max_error}; it is ||D - D_r|| / ||D||, between 0 and 1.",
            cure="Use a number such as --max-error 0.3.",
            slug="bad-max-error",
        )
