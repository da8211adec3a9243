"""The question to a running server, without what it takes to answer it: the client and torch's models."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltarank.errors import UsageError
from deltarank.system import Default

if TYPE_CHECKING:
    import torch

    from deltarank.adapters import Applied, LoraAdapter
    from deltarank.checkpoints import Checkpoint
    from deltarank.jobs.verify.live_server import LiveServer
    from deltarank.results import LiveCheck

HIGHEST_TOLERANCE = 1.0


@dataclass(frozen=True)
class LiveQuestion:
    """What `--live`, `--key` and `--tolerance` say.

    Raises:
        UsageError: (slug "option-without-live") there is no server that the others are about; (slug "bad-number") the
            tolerance is out of range.
    """

    live: str | None
    key: str | None
    tolerance: float | None

    def __post_init__(self) -> None:
        for option, value in (("--key", self.key), ("--tolerance", self.tolerance)):
            if self.live is None and value is not None:
                raise UsageError(
                    f"{option} {value} was given without --live: there is no server that it is about.",
                    cure=f"Name the server: --live MODEL@URL, or leave out {option}.",
                    slug="option-without-live",
                )
        if self.tolerance is not None and not 0 < self.tolerance <= HIGHEST_TOLERANCE:
            raise UsageError(
                f"--tolerance is {self.tolerance}; a number above 0 and up to {HIGHEST_TOLERANCE:g} was expected.",
                cure="Give another number with --tolerance.",
                slug="bad-number",
            )

    def server(self) -> AbstractContextManager[LiveServer | None]:
        """It answers a first request, before anything large is read."""
        if self.live is None:
            return nullcontext()
        from deltarank.jobs.verify.live_server import LiveServer

        return LiveServer(self.live, self.key)

    def answer(
        self, server: LiveServer, base: Checkpoint, adapter: LoraAdapter, applied: Applied, device: torch.device
    ) -> LiveCheck:
        from deltarank.jobs.verify.live import check_live  # it runs models

        tolerance = Default.ENDPOINT_TOLERANCE if self.tolerance is None else self.tolerance
        return check_live(server, base, adapter, applied, tolerance=tolerance, device=device)
