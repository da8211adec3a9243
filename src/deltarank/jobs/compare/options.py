"""The options of `compare`, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltarank.errors import UsageError
from deltarank.results import Ranks
from deltarank.runtime import InputKeywords, SolverOptions, is_number
from deltarank.system import Default


class CompareKeywords(InputKeywords, total=False):
    """The keywords of `deltarank.compare` and `deltarank.plan`; `CompareOptions` says what they mean."""

    ranks: Ranks
    solver: str
    tolerance: float
    dtype: str
    device: str
    include: Sequence[str]
    exclude: Sequence[str]
    audit: int


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SolverOptions):
    """The options of a comparison.

    audit  the number of random matrices to measure again by a full SVD in float64

    Raises:
        UsageError: a value is not usable.
    """

    audit: int = Default.AUDIT

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.audit, whole=True) or self.audit < 0:
            raise UsageError(
                f"--audit is {self.audit}; the smallest value is 0.",
                cure="Use a whole number of at least 0.",
                slug="bad-number",
            )
