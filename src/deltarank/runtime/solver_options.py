"""The options that decide what is measured and how: ranks, solver, tolerance, precision, device, tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from deltarank.errors import UsageError
from deltarank.results import DEFAULT_RANKS, listing, parse_ranks
from deltarank.spectra import SOLVERS
from deltarank.system import Default

COMPUTE_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """Two runs with equal solver options on equal inputs end with equal numbers.

    ranks      the ranks to measure; stored sorted, each once
    solver     "exact" (all singular values), "krylov" (the leading ones, to `tolerance`), or "auto", the faster
    tolerance  how far a cosine distance may be off with krylov
    dtype      the precision of the computation: "float32" or "float64"
    device     where to compute: "cpu", "cuda", "cuda:1", "mps"
    include    globs over tensor names; a tensor that matches is measured whatever it is
    exclude    globs over tensor names to leave out; these win over `include`

    Raises:
        UsageError: a value is not usable.
    """

    ranks: tuple[int, ...] = DEFAULT_RANKS
    solver: str = Default.SOLVER
    tolerance: float = Default.TOLERANCE
    dtype: str = Default.COMPUTE_DTYPE
    device: str = Default.DEVICE
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, SOLVERS)
        check_choice("dtype", self.dtype, tuple(COMPUTE_DTYPES))
        if not is_number(self.tolerance) or not 0 < self.tolerance < 1:
            raise UsageError(
                f"The tolerance {self.tolerance} is not between 0 and 1; it is a difference of cosine distances.",
                cure="Use a small number, such as --tolerance 1e-4.",
                slug="bad-tolerance",
            )
        _check_device(self.device, self.dtype)
        self._set("ranks", parse_ranks(self.ranks))
        self._set("tolerance", float(self.tolerance))
        self._set("device", str(self.device))
        self._set("include", as_tuple(self.include))
        self._set("exclude", as_tuple(self.exclude))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen; its values are normalised once, here

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return COMPUTE_DTYPES[self.dtype]

    def to_plain(self) -> dict[str, Any]:
        """The options above, of a subclass too: what its own fields add does not change a number."""
        plain = {field.name: getattr(self, field.name) for field in fields(SolverOptions)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def is_number(value: object, *, whole: bool = False) -> bool:
    """Whether it is an int, or a float if `whole` is not asked for; a bool is neither."""
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def as_tuple(values: str | Sequence[str]) -> tuple[str, ...]:
    """One string, or several."""
    return (values,) if isinstance(values, str) else tuple(values)


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raises UsageError (slug "bad-OPTION") for a value that is none of the choices."""
    if value not in choices:
        raise UsageError(
            f"{value!r} is not a {option}.",
            cure=f"Choose one of {listing(list(choices))}.",
            slug=f"bad-{option}",
        )


def _check_device(device: str, dtype: str) -> None:
    try:
        kind = torch.device(device).type
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"The device {device!r} cannot be used here: {reason[:200]}",
            cure=f"Available devices: {listing(_available_devices())}.",
            slug="bad-device",
        ) from None
    if kind == "mps" and dtype == "float64":
        raise UsageError(
            "The device 'mps' does not support float64.",
            cure="Use --dtype float32, or --device cpu.",
            slug="bad-device",
        )


def _available_devices() -> list[str]:
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices
