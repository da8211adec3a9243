"""The leading singular values, by block Krylov iteration with full reorthogonalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra import _eigen as eigen
from deltarank.spectra._solver import Leading
from deltarank.spectra._workspace import Workspace

BLOCK = 48
DOMINANT = 0.25
"""If one value has this share of the energy or more, its rounding in bfloat16 would drown the others."""

COARSE = 5e-5
"""Directions found in bfloat16 are good for a tolerance down to this."""

KEPT_LENGTH = 0.5
MOST_BLOCKS_BEYOND = 64
"""A spectrum that has not settled this many blocks past the rank is left as it is: an upper bound of the loss."""


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32: on GPUs, and on CPUs that have instructions for it."""
    if device.type == "cuda":
        return True
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return device.type == "cpu" and known is not None and bool(known()) and has_kernels


class Krylov:
    """Block Krylov iteration on D D' (Musco and Musco 2015) with small blocks (Chen, Epperly, Meyer and Musco 2025).

    The space spanned by X, (D D') X, (D D')^2 X, ... is grown block by block until the cosine distance at every asked
    rank is expected to move by less than `tolerance`. Directions may be found in bfloat16 where that is fast; the
    energies are measured in the working precision on those directions: the loss is overstated, never understated.
    """

    name = "krylov"
    resolution = 1e-5

    def __init__(self, workspace: Workspace, *, tolerance: float, seed: int) -> None:
        self._workspace = workspace
        self._tolerance = tolerance
        self._seed = seed

    def leading(self, delta: Tensor, energy: float, whole: float, ranks: tuple[int, ...]) -> Leading:
        wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
        rank = min(max(ranks), wide.shape[0])
        asked = [r for r in ranks if r <= rank] or [rank]
        settling = _Settling(asked, whole - energy, whole, self._tolerance)
        operator = _lowered(wide, self._workspace) if self._tolerance >= COARSE else wide
        space = self._grown(wide, operator, rank, settling)
        if settling.is_dominated and space.operator is not wide:
            settling = _Settling(asked, whole - energy, whole, self._tolerance)
            space = self._grown(wide, wide, rank, settling)
        return _measured(wide, space.leading(rank), rank)

    def _grown(self, wide: Tensor, operator: Tensor, rank: int, settling: _Settling) -> _Space:
        most = min(rank + MOST_BLOCKS_BEYOND * BLOCK, wide.shape[0])
        space = _Space(operator, wide.dtype, self._workspace, seed=self._seed, most=most)
        while space.expand():
            if space.size >= rank + 2 * BLOCK and settling.done(space.ritz_energies()):
                break
            if settling.is_dominated and operator is not wide:
                break
            space.turn()
        return space


def _measured(wide: Tensor, basis: Tensor, rank: int) -> Leading:
    """Singular values of the projection of `wide` on `basis`, (side, k <= rank): lower bounds of its own.

    Where the space ended before `rank`, D has no more to give but rounding, and the lower bounds are zeros.
    """
    projected = basis.T @ wide
    energies, turn = eigen.vectors((projected @ projected.T).cpu().double())
    turned = turn.flip(1).to(basis)
    values = torch.zeros(rank, dtype=torch.float64)
    values[: len(energies)] = energies.flip(0).clamp_(min=0).sqrt_()
    return Leading(
        values,
        complete=rank == wide.shape[0],
        basis=lambda count: basis @ turned[:, :count],
    )


class _Settling:
    """Foresees how far the losses still have to fall from how fast they fell.

    Ritz energies rise to the true ones about geometrically: two differences give the ratio, and the ratio the rest.
    """

    def __init__(self, ranks: list[int], gone: float, whole: float, tolerance: float) -> None:
        self._places = torch.tensor(ranks) - 1
        self._gone, self._whole, self._tolerance = gone, whole, tolerance
        self._distances: list[Tensor] = []
        self.is_dominated = False

    def done(self, energies: Tensor) -> bool:
        self.is_dominated = float(energies[0]) > DOMINANT * (self._whole - self._gone)
        kept = (energies.cumsum(0)[self._places] + self._gone) / self._whole
        self._distances.append(1 - kept.clamp(0, 1).sqrt())
        if len(self._distances) < 3:
            return False
        first, second, third = self._distances[-3:]
        before, last = first - second, (second - third).clamp(min=0)
        ratio = (last / before.clamp(min=1e-12)).clamp(0, 0.9)
        return bool((last * ratio / (1 - ratio) <= self._tolerance).all())


class _Space:
    """An orthonormal basis of the Krylov space, held as rows, and D D' restricted to it, which is block tridiagonal."""

    def __init__(self, operator: Tensor, dtype: torch.dtype, workspace: Workspace, *, seed: int, most: int) -> None:
        self.operator = operator
        self.size = 0
        self._most = most
        self._rows = workspace.lend("krylov rows", (most, operator.shape[0]), dtype)
        self._restricted = workspace.lend("krylov restriction", (most, most), dtype)
        self._generator = torch.Generator().manual_seed(seed)
        self._block = self._random(min(BLOCK, most))
        self._link = self._rows.new_zeros(0, len(self._block))  # block before x block: D D' between them

    def _random(self, count: int) -> Tensor:
        """Orthonormal rows that the basis knows nothing of."""
        rows = self._rows[: self.size]
        fresh = torch.randn(count, self._rows.shape[1], generator=self._generator).to(self._rows)
        fresh = _orthonormal_rows(fresh - (fresh @ rows.T) @ rows)
        return _orthonormal_rows(fresh - (fresh @ rows.T) @ rows, least=KEPT_LENGTH)

    def expand(self) -> bool:
        """Takes the waiting block into the basis and restricts D D' to it; False if there is none."""
        count = min(len(self._block), self._most - self.size)
        if count == 0:
            return False
        block, old, new = self._block[:count], self.size, self.size + count
        self._rows[old:new] = block
        self._image = block.to(self.operator.dtype) @ self.operator
        image = self._image.to(self._rows.dtype)
        self._restricted[old:new, :new] = 0
        self._restricted[:new, old:new] = 0
        self._restricted[old:new, old:new] = image @ image.T
        before = old - len(self._link)
        self._restricted[before:old, old:new] = self._link[:, :count]
        self._restricted[old:new, before:old] = self._link[:, :count].T
        self.size = new
        return True

    def turn(self) -> None:
        """Makes the next block: D D' on the last one, less what the basis already spans."""
        image = (self._image @ self.operator.T).to(self._rows.dtype)
        rows = self._rows[: self.size]
        left = image - (image @ rows.T) @ rows
        noise = torch.finfo(left.dtype).eps * float(torch.linalg.vector_norm(image))
        block = _orthonormal_rows(left, least=noise)
        # Twice is enough (Giraud and Langou 2002), for what keeps its length: the rest lay in the basis all along.
        block = _orthonormal_rows(block - (block @ rows.T) @ rows, least=KEPT_LENGTH)
        self._link = left @ block.T
        self._block = self._filled(block)

    def _filled(self, block: Tensor) -> Tensor:
        """Where D D' led nowhere new, its reach is exhausted from here: random directions take the empty places."""
        missing = min(BLOCK, self._most - self.size) - len(block)
        if missing <= 0:
            return block
        fresh = self._random(missing)
        fresh = _orthonormal_rows(fresh - (fresh @ block.T) @ block, least=KEPT_LENGTH)
        self._link = torch.cat([self._link, self._link.new_zeros(len(self._link), len(fresh))], dim=1)
        return torch.cat([block, fresh])

    def ritz_energies(self) -> Tensor:
        """Largest first, in float64."""
        held = self._restricted[: self.size, : self.size]
        return eigen.values(held).flip(0).cpu().double().clamp_(min=0)

    def leading(self, count: int) -> Tensor:
        """(side, count): orthonormal vectors for the largest Ritz values."""
        count = min(count, self.size)
        return self._rows[: self.size].T @ eigen.leading_vectors(self._restricted[: self.size, : self.size], count)


def _lowered(wide: Tensor, workspace: Workspace) -> Tensor:
    """`wide` in bfloat16 where products in it are faster: good enough to find directions."""
    if wide.dtype != torch.float32 or not has_fast_bfloat16(wide.device):
        return wide
    stored = wide if wide.is_contiguous() else wide.T
    low = workspace.lend("krylov operator", stored.shape, torch.bfloat16).copy_(stored)
    return low if wide.is_contiguous() else low.T


def _orthonormal_rows(block: Tensor, *, least: float = 0.0) -> Tensor:
    """Orthonormal rows that span those of `block`, less directions shorter than `least` or lost in its rounding."""
    energies, vectors = eigen.vectors(block @ block.T)
    floor = max(float(energies[-1]) * torch.finfo(block.dtype).eps, least**2) if len(energies) else 0.0
    good = energies > floor
    return (vectors[:, good] / energies[good].sqrt()).T @ block
