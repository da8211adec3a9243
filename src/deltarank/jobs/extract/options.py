"""What an extraction was asked for, checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltarank.checkpoints import Pairing
from deltarank.errors import JobError, UsageError
from deltarank.jobs.extract.layout import Layout
from deltarank.results import Total, figure, listing
from deltarank.runtime import SolverOptions, as_tuple
from deltarank.servers import Server, get_server

AUTO = "auto"
STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class ExtractOptions:
    """Everything that moves a number in the adapter.

    rank       None: the smallest servable rank at which no more than `max_error` is lost
    max_error  ||D - D_r|| / ||D|| over all matrices that are extracted
    dtype      of A and B; None: that in which most weights of the finetune are stored
    """

    rank: int | None
    max_error: float | None
    server: Server
    dtype: str | None
    settings: SolverOptions

    @classmethod
    def checked(
        cls,
        *,
        rank: int | str,
        max_error: float | None,
        server_name: str,
        dtype: str | None,
        device: str,
        include: Sequence[str],
        exclude: Sequence[str],
    ) -> ExtractOptions:
        """Raises UsageError for what cannot be meant."""
        known = get_server(server_name)
        if dtype is not None and dtype not in STORED:
            raise UsageError(
                f"{dtype!r} is not a dtype of an adapter.",
                cure=f"Choose one of {listing(list(STORED))}.",
                slug="bad-dtype",
            )
        fixed = _checked_rank(rank, known)
        _check_max_error(fixed, max_error)
        settings = SolverOptions(
            ranks=(fixed,) if fixed else tuple(known.candidate_ranks),
            solver="exact",
            device=device,
            include=as_tuple(include),
            exclude=as_tuple(exclude),
        )
        return cls(fixed, max_error, known, dtype, settings)

    def to_plain(self) -> dict[str, Any]:
        settings = self.settings.to_plain()
        return {
            "rank": self.rank or AUTO,
            "max_error": self.max_error,
            "server": self.server.name,
            "dtype": self.dtype,
            **{key: settings[key] for key in ("device", "include", "exclude")},
        }

    def stored_dtype(self, pairing: Pairing) -> torch.dtype:
        """That of the adapter."""
        if self.dtype is not None:
            return STORED[self.dtype]
        entries: dict[torch.dtype, int] = {}
        for pair in pairing.pairs:
            # What is stored quantised is read as float32, which no adapter of it needs.
            dtype = torch.bfloat16 if pair.finetune.storage else pair.finetune.dtype
            entries[dtype] = entries.get(dtype, 0) + pair.entries
        most = max(entries, key=lambda dtype: entries[dtype])
        return most if most in STORED.values() else torch.float32

    def fitting(self, totals: Total) -> int:
        """The smallest servable rank at which `totals` loses no more than `max_error`.

        Raises:
            JobError: (slug "no-servable-rank") there is none.
        """
        assert self.max_error is not None
        losses = sorted(totals.losses, key=lambda loss: loss.rank)
        for loss in losses:
            if loss.relative_error <= self.max_error:
                return loss.rank
        last = losses[-1]
        raise JobError(
            f"even rank {last.rank}, the largest for {self.server.title}, has a relative error of "
            f"{figure(last.relative_error)}; at most {figure(self.max_error)} was asked for.",
            cure=f"Allow --max-error {math.ceil(100 * last.relative_error) / 100:g}, or give a --rank.",
            slug="no-servable-rank",
        )


def check_reach(layout: Layout) -> None:
    """Raises UsageError (slug "rank-beyond-matrices") where a smaller servable rank holds every matrix whole."""
    largest = max(min(target.pair.shape) for target in layout.targets)
    servable = layout.server.ranks
    enough = largest if servable is None else min((rank for rank in servable if rank >= largest), default=layout.rank)
    if layout.rank > enough:
        raise UsageError(
            f"rank {layout.rank} was asked for, and no matrix here has a rank over {largest}.",
            cure=f"Give --rank {enough}: it keeps all that these matrices hold.",
            slug="rank-beyond-matrices",
        )


def _checked_rank(rank: int | str, known: Server) -> int | None:
    if rank == AUTO:
        return None
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UsageError(
            f"{rank!r} is not a rank; a rank is a whole number from 1, or {AUTO!r}.",
            cure="Give a rank such as 64.",
            slug="bad-ranks",
        )
    known.check_rank(rank)
    return rank


def _check_max_error(rank: int | None, max_error: float | None) -> None:
    if rank is None and max_error is None:
        raise UsageError(
            "--rank auto needs to know how much may be lost.",
            cure="Give --max-error 0.3, say: ||D - D_r|| / ||D|| over all matrices that are extracted.",
            slug="bad-max-error",
        )
    if rank is not None and max_error is not None:
        raise UsageError(
            f"--max-error chooses a rank, and rank {rank} was asked for.",
            cure="Give --rank auto with it, or leave it out.",
            slug="bad-max-error",
        )
    if max_error is not None and not 0 < max_error < 1:
        raise UsageError(
            f"a largest error of {max_error} was asked for; it is ||D - D_r|| / ||D||, between 0 and 1.",
            cure="Give --max-error a number such as 0.3.",
            slug="bad-max-error",
        )
