"""Every solver joins one battery: known spectra, an SVD in float64 as the oracle, and the laws of Eckart and Young."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deltarank.spectra import Workspace, make_solver
from laws.matrices import (
    MAKERS,
    PLANTED,
    RANKS,
    SIZES,
    case,
    cosine_distance,
    gaussian,
    measured,
    pair,
    stored_delta,
    true_shares_lost,
    with_values,
)

SOLVERS = {"exact": 1e-6, "krylov": 2e-4, "auto": 2e-4}
"""The largest deviation of a cosine distance that each promises at the default tolerance."""

STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MAKERS)
def test_cosine_distance_agrees_with_an_svd_in_float64(kind: str, stored: str, solver: str) -> None:
    """At every rank, on every spectrum and shape, and asked for many ranks or for one."""
    for size in SIZES:
        base, finetune, truth = case(kind, size, STORED[stored])
        for ranks in (RANKS, (64,)):
            spectrum, sums = measured(base, finetune, solver=solver, ranks=ranks)
            for rank in ranks:
                found = spectrum.lost(rank) / sums.energy

                assert cosine_distance(found) == pytest.approx(cosine_distance(truth[rank]), abs=SOLVERS[solver]), (
                    size,
                    rank,
                    spectrum.solver,
                )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", PLANTED)
def test_nothing_is_lost_at_a_planted_rank(kind: str, solver: str) -> None:
    """In float32 storage a planted rank-k delta loses at most 1e-8 of its energy at rank k and beyond."""
    for size in ((96, 96), (300, 700), (700, 300)):
        base, finetune = pair(kind, size, torch.float32)
        for ranks in (RANKS, (PLANTED[kind],), (64,)):
            spectrum, sums = measured(base, finetune, solver=solver, ranks=ranks)
            for rank in ranks:
                if rank >= PLANTED[kind]:
                    assert spectrum.lost(rank) <= 1e-8 * sums.energy, (size, rank)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_loss_never_grows_with_the_rank_and_ends_at_nothing(solver: str) -> None:
    for kind in MAKERS:
        base, finetune = pair(kind, (120, 90), torch.bfloat16)
        ranks = tuple(range(1, 91))
        spectrum, sums = measured(base, finetune, solver=solver, ranks=ranks)
        losses = [spectrum.lost(rank) for rank in ranks]

        assert losses[0] < sums.energy
        assert all(after <= before + 1e-9 * sums.energy for before, after in pairwise(losses)), kind
        assert losses[-1] == 0.0


def test_krylov_overstates_the_loss_and_never_understates_it() -> None:
    """Its energies are measured on a subspace, so they are lower bounds, up to rounding in float32."""
    for kind in ("flat", "power law", "gentle", "one dominant"):
        base, finetune = pair(kind, (700, 1400), torch.bfloat16)
        truth = true_shares_lost(stored_delta(base, finetune), (8, 32))
        for tolerance in (1e-2, 1e-3, 1e-4):
            spectrum, sums = measured(base, finetune, solver="krylov", ranks=(8, 32), tolerance=tolerance)

            assert spectrum.solver == "krylov"
            for rank, share in truth.items():
                assert spectrum.lost(rank) / sums.energy >= share - 1e-6, (kind, tolerance, rank)


def test_a_tighter_tolerance_gives_a_smaller_error() -> None:
    base, finetune = pair("flat", (700, 1400), torch.float32)
    truth = true_shares_lost(stored_delta(base, finetune), (32,))[32]
    errors = []
    for tolerance in (3e-2, 1e-5):
        spectrum, sums = measured(base, finetune, solver="krylov", ranks=(32,), tolerance=tolerance)
        errors.append(spectrum.lost(32) / sums.energy - truth)

    assert errors[1] < errors[0] / 5
    assert errors[1] < 3e-5


SLOW: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "evenly from 1 to 0.7": lambda share: 1 - 0.3 * share,
    "evenly from 1 to 0": lambda share: 1 - share,
    "a quarter circle": lambda share: np.sqrt(1 - share**2),
    "a knee": lambda share: np.where(share < 0.05, 1.0, 0.9) * (1 - 0.1 * share),
}
"""Singular values by their position, 0 to 1: the leading subspace hardly stands out from the rest."""


@pytest.mark.parametrize("kind", SLOW)
def test_slow_convergence_is_extrapolated(kind: str) -> None:
    """0.7 of the tolerance of 1e-4 may remain, and low precision may add half of it: at most 1.2e-4, at least 0."""
    values = SLOW[kind](np.arange(1024) / 1024)
    delta = torch.from_numpy(with_values(values, 1024, 1024, np.random.default_rng(0))).float()
    energy = float((values**2).sum())
    for rank, seed in ((8, 0), (16, 1), (32, 0), (64, 1)):
        truth = cosine_distance(float((values[rank:] ** 2).sum()) / energy)
        solver = make_solver("krylov", Workspace(), tolerance=1e-4, seed=seed)
        found = solver.leading(delta, energy, energy, (rank,)).values.square().sum()

        assert -1e-6 <= cosine_distance(1 - float(found) / energy) - truth <= 1.2e-4, (rank, seed)


@pytest.mark.parametrize("solver", ["exact", "krylov"])
def test_losses_do_not_change_under_transposition_and_rotation(solver: str) -> None:
    """Singular values are invariant: D, D' and Q D have the same."""
    random = np.random.default_rng(3)
    base, finetune = pair("power law", (400, 900), torch.float32)
    turn = torch.from_numpy(np.linalg.qr(gaussian(400, 400, random))[0]).float()
    variants = [(base, finetune), (base.T.contiguous(), finetune.T.contiguous()), (turn @ base, turn @ finetune)]
    shares = []
    for before, after in variants:
        spectrum, sums = measured(before, after, solver=solver, ranks=(8, 32))
        shares.append([spectrum.lost(rank) / sums.energy for rank in (8, 32)])

    assert shares[1] == pytest.approx(shares[0], abs=3e-4)
    assert shares[2] == pytest.approx(shares[0], abs=3e-4)


def test_scaling_a_delta_scales_its_losses_by_the_square() -> None:
    base = torch.zeros(200, 300)
    delta = pair("power law", (200, 300), torch.float32)[1]
    for factor in (2.0**-30, 2.0**20):
        one, _ = measured(base, delta, solver="exact", ranks=(8, 64))
        other, _ = measured(base, factor * delta, solver="exact", ranks=(8, 64))

        assert [other.lost(r) / factor**2 for r in (8, 64)] == pytest.approx([one.lost(r) for r in (8, 64)], rel=1e-4)


def test_float64_gives_float64() -> None:
    base, finetune = pair("gentle", (300, 500), torch.float32)
    truth = true_shares_lost(stored_delta(base, finetune), RANKS)
    spectrum, sums = measured(base, finetune, solver="exact", dtype=torch.float64)

    for rank in RANKS:
        assert spectrum.lost(rank) / sums.energy == pytest.approx(truth[rank], rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("solver", ["exact", "krylov"])
def test_singular_values_are_those_of_the_oracle(solver: str) -> None:
    base, finetune = pair("gentle", (700, 900), torch.float32)
    truth = np.linalg.svd(stored_delta(base, finetune), compute_uv=False)
    spectrum, _ = measured(base, finetune, solver=solver, ranks=(64,))

    assert spectrum.values[:64] == pytest.approx(truth[:64], rel=2e-3)
    assert list(spectrum.values) == sorted(spectrum.values, reverse=True)


def test_stable_and_effective_rank_of_a_known_spectrum() -> None:
    """k equal values: both are k. One value: both are 1."""
    random = np.random.default_rng(0)
    base = torch.zeros(200, 300)
    for k in (1, 7, 200):
        delta = torch.from_numpy(with_values(np.ones(k), 200, 300, random)).float()
        spectrum, _ = measured(base, delta, solver="exact", ranks=(8,))

        assert spectrum.stable_rank == pytest.approx(k, rel=1e-4)
        assert spectrum.effective_rank == pytest.approx(k, rel=1e-3)


def test_exact_survives_what_mkl_gives_up_on() -> None:
    """Rows of zeros: seen to end in "failed to converge", or in NaN without an error."""
    for size in ((96, 96), (128, 300), (300, 128)):
        base, finetune = pair("few rows", size, torch.bfloat16)
        spectrum, _ = measured(base, finetune, solver="exact")

        assert all(np.isfinite(spectrum.values))
        assert spectrum.values[0] > 0


def test_the_same_seed_gives_the_same_numbers() -> None:
    base, finetune = pair("flat", (600, 1200), torch.bfloat16)
    one, other = (measured(base, finetune, solver="krylov", ranks=(32,))[0] for _ in range(2))

    assert one.values == other.values


@pytest.mark.parametrize("size", [(5, 20000), (20000, 5), (3, 60000)], ids=str)
def test_long_sums_of_narrow_matrices_keep_their_digits(size: tuple[int, int]) -> None:
    """MKL adds the products of so few rows number by number: in float32 the trace alone was off by 6e-6."""
    base, finetune = pair("flat", size, torch.float32)
    truth = true_shares_lost(stored_delta(base, finetune), (1, 2))
    spectrum, sums = measured(base, finetune, solver="exact", ranks=(1, 2))

    for rank, share in truth.items():
        assert spectrum.lost(rank) / sums.energy == pytest.approx(share, abs=2e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_single_changed_entry_leaves_nothing_to_measure(solver: str) -> None:
    """Taken out, it leaves a delta of zeros, of which no share of anything can be formed."""
    base = torch.zeros(600, 700)
    finetune = base.clone()
    finetune[5, 7] = 1.0
    spectrum, sums = measured(base, finetune, solver=solver, ranks=(8, 64))

    assert spectrum.values[0] == pytest.approx(1.0)
    assert spectrum.lost(8) <= 1e-12 * sums.energy
    assert spectrum.lost(64) <= 1e-12 * sums.energy
