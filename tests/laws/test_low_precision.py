"""Directions found in low precision: int8 Gram matrices and Krylov spaces, compared with float64."""

import numpy as np
import pytest
import torch

from deltarank.spectra import Workspace, choose_solver
from deltarank.spectra.int8_gram import int8_gram_operator
from deltarank.spectra.krylov import Krylov
from deltarank.spectra.krylov_space import KrylovSpace
from deltarank.spectra.low_precision import has_fast_int8, int8_product
from deltarank.spectra.operator import GramOperator, Operator, ProductOperator, product_operator

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not has_fast_int8(CPU), reason="this processor has no fast int8 products")

SIZES = [(64, 64), (300, 701), (701, 300), (33, 1000), (1, 50), (257, 513)]


def wide_of(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    """(side, length), laid out as a matrix of that many rows is."""
    delta = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return delta if rows <= columns else delta.T


def energy_of(wide: torch.Tensor) -> float:
    return float(wide.double().square().sum())


def applied(operator: Operator, block: torch.Tensor) -> torch.Tensor:
    return operator.full_product(operator.first_product(block))


def test_products_of_8_bits_are_exact() -> None:
    random = np.random.default_rng(0)
    left, right = (random.integers(-127, 128, size).astype(np.int8) for size in ((37, 9001), (9001, 53)))
    truth = left.astype(np.int64) @ right.astype(np.int64)

    assert (int8_product(torch.from_numpy(left), torch.from_numpy(right)).numpy() == truth).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_rounded_gram_matrix_is_near_the_true_one(size: tuple[int, int]) -> None:
    wide = wide_of(*size)
    gram = int8_gram_operator(wide, energy_of(wide), Workspace())
    truth = (wide.double() @ wide.double().T).numpy()

    assert gram is not None
    found = applied(gram, torch.eye(len(wide))).double().numpy()
    assert found == pytest.approx(truth, abs=2e-2 * truth.max())
    assert np.linalg.norm(found - truth) <= 2e-2 * np.linalg.norm(truth)


def test_rows_have_scales_of_their_own() -> None:
    """Rows a million times smaller than others, and rows of zeros, are as good as the rest."""
    wide = wide_of(40, 900)
    scales = torch.tensor([1e-6, 1.0, 0.0, 1e3]).repeat(10)[:, None]
    for delta in (wide * scales, (wide * scales).T.contiguous().T):
        gram = int8_gram_operator(delta, energy_of(delta), Workspace())
        truth = (delta.double() @ delta.double().T).numpy()

        assert gram is not None
        found = applied(gram, torch.eye(40)).double().numpy()
        lengths = np.sqrt(np.diag(truth))
        assert (np.abs(found - truth) <= 2e-2 * np.outer(lengths, lengths)).all()


def test_what_int8_cannot_represent_is_refused() -> None:
    """An entry of a thousand in each row leaves the others two or three values."""
    wide = wide_of(64, 512)
    wide[:, 0] = 1000.0
    rest = wide - 1000.0 * (torch.arange(512) == 0)

    assert int8_gram_operator(rest, energy_of(rest), Workspace()) is not None
    wide[:, 0] = 60.0
    assert int8_gram_operator(wide, energy_of(wide), Workspace()) is None


@pytest.mark.parametrize("size", [(300, 701), (701, 300)], ids=str)
@pytest.mark.parametrize("kind", ["products", "bfloat16", "int8 gram"])
def test_a_krylov_space_is_orthonormal_and_restricts_d_d_to_it(kind: str, size: tuple[int, int]) -> None:
    wide = wide_of(*size)
    made = {
        "products": lambda: ProductOperator(wide, wide.dtype),
        "bfloat16": lambda: product_operator(wide, energy_of(wide), Workspace()),
        "int8 gram": lambda: int8_gram_operator(wide, energy_of(wide), Workspace()),
    }
    space = KrylovSpace(made[kind](), torch.float32, Workspace(), seed=0, max_size=250)
    while space.expand():
        space.make_next_block()
    energies, everything = space.ritz(250)
    truth = torch.linalg.eigvalsh(everything.double().T @ wide.double() @ wide.double().T @ everything.double())

    assert space.size == 250
    assert everything.T @ everything == pytest.approx(torch.eye(250), abs=1e-4)
    near = {"products": 1e-4, "bfloat16": 2e-2, "int8 gram": 3e-2}[kind]
    assert torch.equal(energies.argsort(descending=True), torch.arange(250))
    assert energies.flip(0).numpy() == pytest.approx(truth.numpy(), rel=near, abs=near * float(truth[-1]))


@pytest.mark.parametrize(
    ("size", "gap"),
    [
        *(((512, 1024), gap) for gap in (0.0, 0.002, 0.005, 0.01, 0.05, 0.3)),
        *((size, gap) for size in ((1024, 512), (600, 600)) for gap in (0.0, 0.01)),
    ],
    ids=str,
)
def test_low_precision_is_given_up_where_it_would_show(size: tuple[int, int], gap: float) -> None:
    """128 values of 1 over a rest that is slightly lower: the loss at ranks 8, 64 and 128 is right for any choice."""
    random, side = np.random.default_rng(0), min(size)
    left = np.linalg.qr(random.standard_normal((size[0], side)))[0]
    right = np.linalg.qr(random.standard_normal((size[1], side)))[0]
    values = np.where(np.arange(side) < 128, 1.0, 1.0 - gap)
    delta = torch.from_numpy((left * values) @ right.T).float()
    energy = float(delta.double().square().sum())
    for ranks in ((8,), (64,), (128,), (8, 64, 128)):
        found = Krylov(Workspace(), tolerance=1e-4, seed=0).leading(delta, energy, energy, ranks).values.square()
        for rank in ranks:
            truth = rank / (values**2).sum()

            assert float(found[:rank].sum() / energy) ** 0.5 == pytest.approx(truth**0.5, abs=2e-4)


def test_the_restriction_of_a_gram_operator_is_symmetric() -> None:
    wide = wide_of(120, 500)
    gram = int8_gram_operator(wide, energy_of(wide), Workspace())
    assert isinstance(gram, GramOperator)
    block = torch.linalg.qr(torch.randn(120, 16, generator=torch.Generator().manual_seed(1))).Q.T
    restricted = gram.restrict(block, gram.first_product(block))

    assert torch.equal(restricted, restricted.T)
    assert restricted.double().numpy() == pytest.approx(
        (block.double() @ wide.double() @ wide.double().T @ block.double().T).numpy(), abs=0.02 * 500
    )


def test_auto_relies_on_low_precision_only_where_the_tolerance_allows_it() -> None:
    """In float32 a Krylov space of this shape takes as long as the whole spectrum."""
    assert choose_solver("auto", 2048, 8192, (64,), CPU, tolerance=1e-4) == "krylov"
    assert choose_solver("auto", 2048, 8192, (64,), CPU, tolerance=1e-5) == "exact"
