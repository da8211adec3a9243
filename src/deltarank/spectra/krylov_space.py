"""A block Krylov space with full reorthogonalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.spectra import eigen as eigen
from deltarank.spectra.operator import Operator
from deltarank.spectra.workspace import Workspace

MIN_LENGTH_KEPT = 0.5
"""A row that is shorter than this once the basis is projected out is dropped: too much of it is rounding."""

SAFE_LENGTH_KEPT = 0.1
"""A row that keeps this share of its length when the basis is projected out is orthogonal to it up to rounding."""


class KrylovSpace:
    """An orthonormal basis of span(X, (D D') X, (D D')^2 X, ...), held as rows, and D D' restricted to it.

    The restriction is block tridiagonal: a new block is D D' times the last one, minus its projection on the last two.
    What rounding leaves of them and of the older blocks is then projected out as well, because it would grow again
    (Paige 1971).
    """

    def __init__(
        self, operator: Operator, dtype: torch.dtype, workspace: Workspace, *, seed: int, max_size: int
    ) -> None:
        self.operator = operator
        self.size = 0
        self._max_size = max_size
        self._basis = workspace.empty("krylov basis", (max_size, operator.side), dtype)
        self._restricted = workspace.empty("krylov restriction", (max_size, max_size), dtype)
        self._generator = torch.Generator().manual_seed(seed)
        self._block = self._random_block(min(operator.block_size, max_size))
        # D D' between the block before and this one
        self._off_diagonal = self._basis.new_zeros(0, len(self._block))
        self._solution: tuple[Tensor, Tensor] | None = None

    def _random_block(self, count: int) -> Tensor:
        """Random orthonormal rows that are orthogonal to the basis."""
        fresh = torch.randn(count, self._basis.shape[1], generator=self._generator).to(self._basis)
        return self._orthogonalise(_orthonormal_rows(self._minus_basis(fresh))[0])

    def _orthogonalise(self, block: Tensor) -> Tensor:
        """An orthonormal block without its projection on the basis; rows that are too short then are dropped."""
        return _orthonormal_rows(self._minus_basis(block), min_length=MIN_LENGTH_KEPT)[0]

    def _minus_basis(self, block: Tensor) -> Tensor:
        return _minus_projection(block, self._basis[: self.size])

    def expand(self) -> bool:
        """Adds the waiting block to the basis and restricts D D' to it; False if there is no block."""
        count = min(len(self._block), self._max_size - self.size)
        if count == 0:
            return False
        block, old, new = self._block[:count], self.size, self.size + count
        self._basis[old:new] = block
        self._first_product = self.operator.first_product(block)
        self._restricted[old:new, :new] = 0
        self._restricted[:new, old:new] = 0
        self._restricted[old:new, old:new] = self.operator.restrict(block, self._first_product)
        before = old - len(self._off_diagonal)
        self._restricted[before:old, old:new] = self._off_diagonal[:, :count]
        self._restricted[old:new, before:old] = self._off_diagonal[:, :count].T
        self.size = new
        self._solution = None
        return True

    def make_next_block(self) -> None:
        """D D' times the last block, minus what the basis already spans."""
        product = self.operator.full_product(self._first_product)
        last_two = self._basis[max(self.size - 2 * self.operator.block_size, 0) : self.size]
        rest = self._minus_basis(_minus_projection(product, last_two))
        length = float(torch.linalg.vector_norm(product))
        block, shortest = _orthonormal_rows(rest, min_length=torch.finfo(rest.dtype).eps * length)
        if shortest < SAFE_LENGTH_KEPT * length / len(product) ** 0.5:
            block = self._orthogonalise(block)
        self._off_diagonal = rest @ block.T
        self._block = self._fill_up(block)

    def _fill_up(self, block: Tensor) -> Tensor:
        """Random directions in place of those that D D' no longer provides: from here it reaches nothing new."""
        missing = min(self.operator.block_size, self._max_size - self.size) - len(block)
        if missing <= 0:
            return block
        fresh, _ = _orthonormal_rows(_minus_projection(self._random_block(missing), block), min_length=MIN_LENGTH_KEPT)
        zeros = self._off_diagonal.new_zeros(len(self._off_diagonal), len(fresh))
        self._off_diagonal = torch.cat([self._off_diagonal, zeros], dim=1)
        return torch.cat([block, fresh])

    def ritz_energies(self, *, with_vectors: bool = False) -> Tensor:
        """All Ritz values, the largest first. Takes twice as long if it also computes the vectors for `ritz`."""
        if with_vectors or self._solution:
            return _descending(self._solve()[0])
        return _descending(eigen.eigenvalues(self._restricted[: self.size, : self.size]))

    def ritz(self, count: int) -> tuple[Tensor, Tensor]:
        """All Ritz values, and the first `count` Ritz vectors, (side, count): the largest first."""
        energies, vectors = self._solve()
        leading = vectors.flip(1)[:, :count]
        return _descending(energies), self._basis[: self.size].T @ leading

    def _solve(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the restriction, cached until the space grows."""
        self._solution = self._solution or eigen.eigenvectors(self._restricted[: self.size, : self.size])
        return self._solution


def _descending(energies: Tensor) -> Tensor:
    """In float64, on the CPU."""
    return energies.flip(0).cpu().double().clamp_(min=0)


def _minus_projection(block: Tensor, rows: Tensor) -> Tensor:
    return torch.addmm(block, block @ rows.T, rows, alpha=-1)


def _orthonormal_rows(block: Tensor, *, min_length: float = 0.0) -> tuple[Tensor, float]:
    """Orthonormal rows that span `block`, without directions that are shorter than `min_length` or mere rounding.

    Also the length of the shortest direction that was kept; 0 if there is none.
    """
    energies, vectors = eigen.eigenvectors(block @ block.T)
    floor = max(float(energies[-1]) * torch.finfo(block.dtype).eps, min_length**2) if len(energies) else 0.0
    is_kept = energies > floor
    lengths = energies[is_kept].sqrt()
    return (vectors[:, is_kept] / lengths).T @ block, float(lengths[0]) if len(lengths) else 0.0
