"""The options of `compare`, checked before anything is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltarank.errors import UsageError
from deltarank.results import Ranks
from deltarank.runtime import InputKeywords, Ref, SolverOptions, is_number
from deltarank.system import Default, user_path


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
    calibration_texts: Sequence[Ref]
    calibration_tokens: int


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SolverOptions):
    """The options of a comparison.

    audit               the number of random matrices to measure again by a full SVD in float64
    calibration_texts   files or folders that the finetune reads, for the activation-weighted losses
    calibration_tokens  how many tokens of them

    Raises:
        UsageError: a value is not usable.
    """

    audit: int = Default.AUDIT
    calibration_texts: tuple[str, ...] = ()
    calibration_tokens: int = Default.ACTIVATION_TOKENS

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("audit", self.audit, least=0)
        _check_number("calibration-tokens", self.calibration_tokens, least=2)
        given = self.calibration_texts
        paths = [given] if isinstance(given, str | os.PathLike) else given
        self._set("calibration_texts", tuple(str(user_path(path)) for path in paths))

    def calibration_identity(self) -> dict[str, Any]:
        """What a calibration text adds to the identity of a run; empty without one."""
        if not self.calibration_texts:
            return {}
        from deltarank.divergence import hash_texts  # imports scikit-learn

        texts = {"calibration text": hash_texts(self.calibration_texts)}
        return {"given": texts, "calibration": {"tokens": self.calibration_tokens}}


def _check_number(option: str, value: int, *, least: int) -> None:
    if not is_number(value, whole=True) or value < least:
        raise UsageError(
            f"--{option} is {value}; the smallest value is {least}.",
            cure=f"Use a whole number of at least {least}.",
            slug="bad-number",
        )
