"""The delta D = W - W0 and the sums over its entries, in one pass over chunks that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltarank.spectra.noise import RoundingNoise, add_base, add_noise
from deltarank.spectra.workspace import Workspace

# Kept bits of a number once its mantissa is cleared (sign cleared too), and the bits of that mantissa.
_EXPONENTS: dict[torch.dtype, tuple[torch.dtype, int, int]] = {
    torch.bfloat16: (torch.int16, 0x7F80, 7),
    torch.float16: (torch.int16, 0x7C00, 10),
    torch.float32: (torch.int32, 0x7F800000, 23),
    torch.float64: (torch.int64, 0x7FF0000000000000, 52),
}

_RUN = 1024
"""Numbers that are added in the working precision before float64 takes over: relative error of a sum about 1e-9."""


@dataclass(frozen=True)
class Sums:
    """What is known of a delta from its entries alone; sums of several parts add up.

    energy            ||D||^2 = sum of (w - w0)^2
    base_energy       ||W0||^2
    absolute          sum of |w - w0|
    rounding_energy   sum of ulp(w)^2 / 12 over the finetune as stored: the energy of the error that rounding to the
                      stored dtype makes, each error taken as uniform within half a unit in the last place
    entries           rows * columns
    """

    energy: float = 0.0
    base_energy: float = 0.0
    absolute: float = 0.0
    rounding_energy: float = 0.0
    entries: int = 0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.energy + other.energy,
            self.base_energy + other.base_energy,
            self.absolute + other.absolute,
            self.rounding_energy + other.rounding_energy,
            self.entries + other.entries,
        )

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.energy) and math.isfinite(self.base_energy)

    @property
    def is_zero(self) -> bool:
        """Every entry of the two is the same number."""
        return self.absolute == 0.0

    @property
    def relative_norm(self) -> float | None:
        """||D|| / ||W0||; None where it is not a finite number."""
        ratio = self.energy / self.base_energy if self.base_energy > 0 else math.inf
        return math.sqrt(ratio) if math.isfinite(ratio) else None

    @property
    def rounding_floor(self) -> float:
        """The share of ||D||^2 that storage rounding alone explains, at most 1.

        Of a delta smaller than a unit in the last place most entries vanish, and the formula says more than there
        is: then rounding explains all of it.
        """
        return min(self.rounding_energy / self.energy, 1.0) if self.energy > 0 else 0.0

    def with_format_error(self, error: float) -> Sums:
        """The same sums for a finetune that was quantised, whose rounding error its dtype does not show.

        Args:
            error: ||W - Q(W)|| / ||W|| of its format. ||W|| is taken as ||W0||, which is about as large.
        """
        return replace(self, rounding_energy=self.rounding_energy + error * error * self.base_energy)


def subtract(
    base: Tensor, finetune: Tensor, *, out: Tensor, workspace: Workspace, noise: RoundingNoise | None = None
) -> Sums:
    """Writes W - W0 to `out` and returns its sums. Both operands are upcast to `out`'s dtype before they meet.

    Args:
        base, finetune: (rows, columns), as stored.
        out: (rows, columns) in the working precision, on the device that computes.
        workspace: provides the scratch.
        noise: takes the errors that rounding is expected to have left in these rows.
    """
    noises = () if noise is None else (noise,)
    return subtract_batch(base[None], finetune[None], out=out[None], workspace=workspace, noises=noises)[0]


def subtract_batch(
    base: Tensor, finetune: Tensor, *, out: Tensor, workspace: Workspace, noises: Sequence[RoundingNoise] = ()
) -> list[Sums]:
    """`subtract` for several matrices at once, (n, rows, columns) each. Returns the sums of each matrix."""
    stored = finetune.to(out.device, non_blocking=True)
    scratch = workspace.empty_like("subtrahend", out)
    powers = workspace.empty("exponents", stored.shape, stored.dtype)
    rounding = _rounding_energies(stored, powers, scratch)
    out.copy_(stored)
    scratch.copy_(base)
    base_energies = _energies(scratch)
    add_base(noises, scratch)
    out.sub_(scratch)
    absolutes = _sums(torch.abs(out, out=scratch))
    if noises:
        add_noise(noises, powers, out, scratch)
    entries = out[0].numel()
    sums = zip(_energies(out), base_energies, absolutes, rounding, strict=True)
    return [Sums(energy, base, absolute, rounded, entries) for energy, base, absolute, rounded in sums]


def energy_of(matrix: Tensor, *, entries: int = 1 << 20) -> float:
    """||matrix||^2, summed in float64, about `entries` numbers at a time."""
    rows = max(1, entries // max(matrix.shape[1], 1))
    parts: tuple[Tensor, ...] = torch.split(matrix, rows)
    return math.fsum(_energies(part[None])[0] for part in parts)


def _energies(values: Tensor) -> list[float]:
    """The sum of squares of each matrix of a batch."""
    runs, rest = _runs(values)
    whole = torch.linalg.vector_norm(runs, dim=2).to(widest_dtype(values)).square().sum(1)
    energies: list[float] = (whole + rest.to(widest_dtype(values)).square().sum(1)).tolist()
    return energies


def _sums(values: Tensor) -> list[float]:
    """The sum of each matrix of a batch."""
    runs, rest = _runs(values)
    sums: list[float] = (
        runs.sum(2).sum(1, dtype=widest_dtype(values)) + rest.sum(1, dtype=widest_dtype(values))
    ).tolist()
    return sums


def _runs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each matrix in runs, (n, count, _RUN), and what is left over, (n, < _RUN).

    A run is added in the working precision, runs in float64: as good as float64 throughout, at a quarter of the time.
    """
    flat = values.reshape(len(values), -1)
    whole = flat.shape[1] // _RUN * _RUN
    return flat[:, :whole].view(len(flat), -1, _RUN), flat[:, whole:]


def widest_dtype(values: Tensor) -> torch.dtype:
    """The dtype to sum in: float64, which Apple's GPUs do not have."""
    return torch.float32 if values.device.type == "mps" else torch.float64


def _rounding_energies(stored: Tensor, powers: Tensor, scratch: Tensor) -> list[float]:
    """sum of ulp^2 / 12. A number without its mantissa is its power of two 2^e, and ulp = 2^(e - mantissa bits)."""
    integers, mask, mantissa = _EXPONENTS[stored.dtype]
    torch.bitwise_and(stored.view(integers), mask, out=powers.view(integers))
    scratch.copy_(powers)
    return [energy * 2.0 ** (-2 * mantissa) / 12.0 for energy in _energies(scratch)]
