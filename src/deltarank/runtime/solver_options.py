"""What a run was asked for, checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltarank.errors import UsageError
from deltarank.results import listing
from deltarank.spectra import SOLVERS

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class SolverOptions:
    """Everything that moves a number. Two runs with equal settings on equal inputs end with equal numbers."""

    ranks: tuple[int, ...]
    solver: str
    tolerance: float
    dtype: str
    device: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    @classmethod
    def checked(
        cls,
        *,
        ranks: Sequence[int],
        solver: str,
        tolerance: float,
        dtype: str,
        device: str,
        include: Sequence[str],
        exclude: Sequence[str],
    ) -> SolverOptions:
        """The settings, ranks sorted and each once.

        Raises:
            UsageError: one of them cannot be meant.
        """
        _check_choice("solver", solver, SOLVERS)
        _check_choice("dtype", dtype, tuple(DTYPES))
        if not (0 < tolerance < 1) or not math.isfinite(tolerance):
            raise UsageError(
                f"a tolerance of {tolerance} was asked for; it is a difference of cosine distances, between 0 and 1.",
                cure="Give --tolerance a small number such as 1e-4.",
                slug="bad-tolerance",
            )
        _check_device(device, dtype)
        return cls(
            _checked_ranks(ranks), solver, float(tolerance), dtype, str(device), _globs(include), _globs(exclude)
        )

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def to_plain(self) -> dict[str, Any]:
        return {
            "ranks": list(self.ranks),
            "solver": self.solver,
            "tolerance": self.tolerance,
            "dtype": self.dtype,
            "device": self.device,
            "include": list(self.include),
            "exclude": list(self.exclude),
        }


def _globs(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _checked_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    wrong = [r for r in ranks if isinstance(r, bool) or not isinstance(r, int) or r < 1]
    if wrong or not ranks:
        raise UsageError(
            f"{wrong[0]!r} is not a rank; ranks are whole numbers from 1." if wrong else "no rank was asked for.",
            cure="Give ranks such as 16,64,128.",
            slug="bad-ranks",
        )
    return tuple(sorted(set(ranks)))


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(
            f"{value!r} is not a {name}.",
            cure=f"Choose one of {listing(list(known))}.",
            slug=f"bad-{name}",
        )


def _check_device(device: str, dtype: str) -> None:
    try:
        kind = torch.device(device).type
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"the device {device!r} cannot be used here: {reason[:200]}",
            cure=f"Use one of {listing(_devices())}.",
            slug="bad-device",
        ) from None
    if kind == "mps" and dtype == "float64":
        raise UsageError("mps knows no float64.", cure="Use --dtype float32, or --device cpu.", slug="bad-device")


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
