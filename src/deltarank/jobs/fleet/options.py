"""The options of `fleet`, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypedDict

from deltarank.jobs.compare import CompareOptions
from deltarank.jobs.extract import ExtractOptions
from deltarank.results import Ranks
from deltarank.runtime import SolverOptions
from deltarank.servers import DEFAULT_SERVER
from deltarank.system import Default


class FleetKeywords(TypedDict, total=False):
    """The keywords of `deltarank.fleet` and `deltarank.plan_fleet`; `FleetOptions` says what they mean."""

    ranks: Ranks
    solver: str
    tolerance: float
    dtype: str
    device: str
    include: Sequence[str]
    exclude: Sequence[str]
    audit: int
    adapter_rank: int | None
    server: str
    base_revision: str | None
    fetch: str


@dataclass(frozen=True, kw_only=True)
class FleetOptions(SolverOptions):
    """The options of a fleet.

    audit         the number of random matrices of each finetune to measure again by a full SVD in float64
    adapter_rank  the rank of the adapter that each finetune gets; None: none
    server        the server whose rules these adapters follow

    Raises:
        UsageError: a value is not usable.
    """

    audit: int = Default.AUDIT
    adapter_rank: int | None = None
    server: str = DEFAULT_SERVER

    def __post_init__(self) -> None:
        super().__post_init__()
        self.of_each()
        self.of_adapters()

    def of_adapters(self) -> ExtractOptions | None:
        """The options of the extraction from each finetune; None if no adapters are asked for.

        Raises:
            UsageError: a value is not usable.
        """
        if self.adapter_rank is None:
            return None
        shared = {name: getattr(self, name) for name in ("server", "device", "include", "exclude")}
        return ExtractOptions(rank=self.adapter_rank, **shared)

    def of_each(self) -> CompareOptions:
        """The options of the comparison of each finetune with the base.

        Raises:
            UsageError: a value is not usable.
        """
        shared = [field.name for field in fields(SolverOptions)]
        return CompareOptions(audit=self.audit, **{name: getattr(self, name) for name in shared})
