"""A block Krylov space with full reorthogonalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra import eigen as eigen
from deltarank.spectra.operator import Operator
from deltarank.spectra.workspace import Workspace

KEPT_LENGTH = 0.5

CLEAR = 0.1
"""A row that kept this share of its length when the basis was taken out of it is orthogonal to it to rounding."""


class KrylovSpace:
    """An orthonormal basis of span(X, (D D') X, (D D')^2 X, ...), held as rows, and D D' restricted to it.

    That is block tridiagonal: a new block is D D' times the last one, less what lies in the last two. What rounding
    leaves of them and of the older ones is then taken out as well, for without that they would come back (Paige 1971).
    """

    def __init__(self, operator: Operator, dtype: torch.dtype, workspace: Workspace, *, seed: int, most: int) -> None:
        self.operator = operator
        self.size = 0
        self._most = most
        self._rows = workspace.empty("krylov rows", (most, operator.side), dtype)
        self._restricted = workspace.empty("krylov restriction", (most, most), dtype)
        self._generator = torch.Generator().manual_seed(seed)
        self._block = self._random(min(operator.block, most))
        self._link = self._rows.new_zeros(0, len(self._block))  # block before x block: D D' between them
        self._solved: tuple[Tensor, Tensor] | None = None

    def _random(self, count: int) -> Tensor:
        """Orthonormal rows that the basis knows nothing of."""
        fresh = torch.randn(count, self._rows.shape[1], generator=self._generator).to(self._rows)
        return self._apart(_orthonormal_rows(self._less_basis(fresh))[0])

    def _apart(self, block: Tensor) -> Tensor:
        """An orthonormal block without what the basis has of it; a row that is half of that or more is given up."""
        return _orthonormal_rows(self._less_basis(block), least=KEPT_LENGTH)[0]

    def _less_basis(self, block: Tensor) -> Tensor:
        return _less(block, self._rows[: self.size])

    def expand(self) -> bool:
        """Takes the waiting block into the basis and restricts D D' to it; False if there is none."""
        count = min(len(self._block), self._most - self.size)
        if count == 0:
            return False
        block, old, new = self._block[:count], self.size, self.size + count
        self._rows[old:new] = block
        self._image = self.operator.image(block)
        self._restricted[old:new, :new] = 0
        self._restricted[:new, old:new] = 0
        self._restricted[old:new, old:new] = self.operator.within(block, self._image)
        before = old - len(self._link)
        self._restricted[before:old, old:new] = self._link[:, :count]
        self._restricted[old:new, before:old] = self._link[:, :count].T
        self.size = new
        self._solved = None
        return True

    def turn(self) -> None:
        """Makes the next block: D D' on the last one, less what the basis already spans."""
        image = self.operator.onward(self._image)
        last_two = self._rows[max(self.size - 2 * self.operator.block, 0) : self.size]
        left = self._less_basis(_less(image, last_two))
        length = float(torch.linalg.vector_norm(image))
        block, shortest = _orthonormal_rows(left, least=torch.finfo(left.dtype).eps * length)
        if shortest < CLEAR * length / len(image) ** 0.5:
            block = self._apart(block)
        self._link = left @ block.T
        self._block = self._filled(block)

    def _filled(self, block: Tensor) -> Tensor:
        """Where D D' led nowhere new, its reach is exhausted from here: random directions take the empty places."""
        missing = min(self.operator.block, self._most - self.size) - len(block)
        if missing <= 0:
            return block
        fresh, _ = _orthonormal_rows(_less(self._random(missing), block), least=KEPT_LENGTH)
        self._link = torch.cat([self._link, self._link.new_zeros(len(self._link), len(fresh))], dim=1)
        return torch.cat([block, fresh])

    def ritz_energies(self, *, is_last: bool = False) -> Tensor:
        """The largest first. With the vectors at once, twice as slow, if this is going to be the last look."""
        if is_last or self._solved:
            return _descending(self._eigen()[0])
        return _descending(eigen.eigenvalues(self._restricted[: self.size, : self.size]))

    def ritz(self, count: int) -> tuple[Tensor, Tensor]:
        """All Ritz energies, and orthonormal vectors of the first, (side, count): the largest first."""
        energies, vectors = self._eigen()
        leading = vectors.flip(1)[:, :count]
        return _descending(energies), self._rows[: self.size].T @ leading

    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Of the restriction: remembered until the space grows."""
        self._solved = self._solved or eigen.eigenvectors(self._restricted[: self.size, : self.size])
        return self._solved


def _descending(energies: Tensor) -> Tensor:
    """In float64, on the CPU."""
    return energies.flip(0).cpu().double().clamp_(min=0)


def _less(block: Tensor, rows: Tensor) -> Tensor:
    return torch.addmm(block, block @ rows.T, rows, alpha=-1)


def _orthonormal_rows(block: Tensor, *, least: float = 0.0) -> tuple[Tensor, float]:
    """Orthonormal rows that span those of `block`, less directions shorter than `least` or lost in its rounding.

    Also the length of the shortest that was kept; 0 if there is none.
    """
    energies, vectors = eigen.eigenvectors(block @ block.T)
    floor = max(float(energies[-1]) * torch.finfo(block.dtype).eps, least**2) if len(energies) else 0.0
    good = energies > floor
    lengths = energies[good].sqrt()
    return (vectors[:, good] / lengths).T @ block, float(lengths[0]) if len(lengths) else 0.0
