"""Sums over entries, rounding and the noise edge, against float64 and against simulation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarank.spectra import RoundingNoise, Sums, Workspace, energy_of, subtract
from laws.matrices import measured, pair, planted

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def noise_edge(base: torch.Tensor, finetune: torch.Tensor) -> float:
    noise = RoundingNoise()
    subtract(base, finetune, out=torch.empty(base.shape), workspace=Workspace(), noise=noise)
    return noise.edge()


def sums_of(base: torch.Tensor, finetune: torch.Tensor) -> Sums:
    return subtract(base, finetune, out=torch.empty(base.shape), workspace=Workspace())


@pytest.mark.parametrize("before", DTYPES)
@pytest.mark.parametrize("after", DTYPES)
def test_operands_are_upcast_before_they_meet(before: torch.dtype, after: torch.dtype) -> None:
    base, finetune = torch.randn(37, 91).to(before), torch.randn(37, 91).to(after)
    out = torch.empty(37, 91, dtype=torch.float64)
    subtract(base, finetune, out=out, workspace=Workspace())

    assert torch.equal(out, finetune.double() - base.double())


@given(rows=st.integers(1, 40), columns=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_sums_agree_with_float64(rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, columns, generator=random).bfloat16()
    finetune = (base.float() + 0.1 * torch.randn(rows, columns, generator=random)).bfloat16()
    sums, delta = sums_of(base, finetune), finetune.double() - base.double()

    assert sums.energy == pytest.approx(float(delta.square().sum()), rel=1e-6, abs=1e-30)
    assert sums.absolute == pytest.approx(float(delta.abs().sum()), rel=1e-6, abs=1e-30)
    assert sums.base_energy == pytest.approx(float(base.double().square().sum()), rel=1e-6)
    assert sums.entries == rows * columns


def test_sums_of_parts_add_up_to_the_sums_of_the_whole() -> None:
    base, finetune = pair("flat", (64, 500), torch.bfloat16)
    whole = sums_of(base, finetune)
    parts = sums_of(base[:20], finetune[:20]) + sums_of(base[20:], finetune[20:])

    assert parts.energy == pytest.approx(whole.energy, rel=1e-7)
    assert parts.rounding_energy == pytest.approx(whole.rounding_energy, rel=1e-7)
    assert parts.entries == whole.entries


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_rounding_energy_is_that_of_real_rounding(dtype: torch.dtype) -> None:
    """ulp^2 / 12 over the stored numbers, against the error that storing really made."""
    exact = torch.randn(400, 500, dtype=torch.float64)
    stored = exact.to(dtype)
    made = float((stored.double() - exact).square().sum())

    assert sums_of(torch.zeros_like(stored), stored).rounding_energy == pytest.approx(made, rel=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["base", "finetune"])
def test_one_bad_number_shows(bad: float, side: str) -> None:
    tensors = {"base": torch.randn(30, 2000), "finetune": torch.randn(30, 2000)}
    tensors[side][17, 1234] = bad

    assert not sums_of(**tensors).is_finite


def test_equal_numbers_are_zero_and_negative_zero_is_zero() -> None:
    base = torch.randn(5, 7).bfloat16()
    base[0, 0] = 0.0
    finetune = base.clone()
    finetune[0, 0] = -0.0

    assert sums_of(base, finetune).is_zero
    assert sums_of(base, finetune).rounding_floor == 0.0


def test_energy_of_is_the_squared_norm() -> None:
    matrix = torch.randn(701, 1303)

    truth = float(matrix.double().square().sum())

    assert energy_of(matrix, entries=5000) == pytest.approx(truth, rel=1e-7)


@pytest.mark.parametrize("size", [(64, 64), (300, 300), (200, 900)])
def test_the_noise_edge_lies_just_above_pure_rounding(size: tuple[int, int]) -> None:
    """Marchenko and Pastur: no value of pure rounding is above it, and the largest comes close to it."""
    for seed in range(20):
        exact = np.random.default_rng(seed).standard_normal(size)
        stored = torch.from_numpy(exact).bfloat16()
        largest = np.linalg.svd(stored.double().numpy() - exact, compute_uv=False)[0]
        base = (stored.double() + 0.01).bfloat16()  # a delta that is small, and so adds no rounding of its own
        edge = noise_edge(base, stored)

        assert largest < edge < 1.5 * largest


def test_the_noise_edge_covers_rows_and_columns_of_unlike_sizes() -> None:
    """Outlier channels: the errors of the largest column alone have a norm above the edge of their average."""
    generator = np.random.default_rng(0)
    scales = np.exp(generator.standard_normal((300, 1))) * np.exp(generator.standard_normal((1, 500)))
    exact = scales * generator.standard_normal((300, 500))
    stored = torch.from_numpy(exact).bfloat16()
    largest = np.linalg.svd(stored.double().numpy() - exact, compute_uv=False)[0]

    assert largest < noise_edge((stored.double() * 1.01).bfloat16(), stored) < 2.5 * largest


@pytest.mark.parametrize("relative_norm", [0.003, 0.03, 0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("solver", ["exact", "krylov"])
def test_the_rank_of_a_merged_lora_is_found_under_its_rounding(
    solver: str, dtype: torch.dtype, relative_norm: float
) -> None:
    """A rank-16 update, stored: 16 values are above the edge, though the stored delta has full rank."""
    base, finetune = pair("planted 16", (600, 700), dtype, relative_norm=relative_norm)
    spectrum, _ = measured(base, finetune, solver=solver, ranks=(8, 64))

    assert spectrum.signal_rank(noise_edge(base, finetune)) == 16


def test_a_delta_under_the_unit_in_the_last_place_has_no_signal() -> None:
    """bfloat16 keeps 8 bits: a change of 0.0003 of the weights is rounding and nothing else."""
    base, finetune = pair("planted 16", (600, 700), torch.bfloat16, relative_norm=0.0003)
    spectrum, sums = measured(base, finetune, solver="exact", ranks=(8,))

    assert sums.rounding_floor > 0.5
    assert (spectrum.signal_rank(noise_edge(base, finetune)) or 0) <= 1


def test_all_of_a_flat_delta_is_signal() -> None:
    base, finetune = pair("flat", (300, 900), torch.bfloat16)
    spectrum, sums = measured(base, finetune, solver="exact", ranks=(8,))

    assert spectrum.signal_rank(noise_edge(base, finetune)) == 300
    assert sums.rounding_floor < 0.01


def test_planted_makes_a_matrix_of_that_rank() -> None:
    """The helper itself: a wrong oracle would make every law pass."""
    assert np.linalg.matrix_rank(planted(5)(40, 60, np.random.default_rng(0))) == 5
