"""Laws of factors: no matrix of the rank is nearer (numpy's SVD in float64 says so), and the two sides are balanced."""

import numpy as np
import pytest
import torch

from deltarank.spectra import Factors, Workspace, device_rates, factorisation_cost, factorise, residual_energy, subtract
from laws.matrices import MAKERS, SIZES, case, pair, stored_delta

RANKS = (1, 8, 64)
DTYPES = (torch.float32, torch.bfloat16)


def delta_of(base: torch.Tensor, finetune: torch.Tensor) -> tuple[torch.Tensor, float]:
    delta = torch.empty(base.shape)
    sums = subtract(base, finetune, out=delta, workspace=Workspace())
    return delta, sums.energy


def made(base: torch.Tensor, finetune: torch.Tensor, rank: int) -> Factors:
    delta, energy = delta_of(base, finetune)
    return factorise(delta, rank, energy=energy, workspace=Workspace())


def product(found: Factors) -> np.ndarray:
    return found.left.double().numpy() @ found.right.double().numpy()


CPU = torch.device("cpu")

NEAR = {"all values equal": 1e-6, "cliff past 64": 1e-7}
"""Of values that differ by float32's rounding alone, any will do."""

needs_int8 = pytest.mark.skipif(not device_rates(CPU).int8_gram, reason="this processor has no fast int8 products")


def share_lost(exact: np.ndarray, found: Factors) -> float:
    return float(((exact - product(found)) ** 2).sum() / (exact**2).sum())


def force_method(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("deltarank.spectra.factors._cheapest_method", lambda *_: (method, 0.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_no_matrix_of_the_rank_is_nearer(kind: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    """By more than 1e-5 of the change, by the fastest method; the stated loss is that of the factors."""
    base, finetune, truth = case(kind, size, dtype)
    exact = stored_delta(base, finetune)
    for rank in RANKS:
        found = made(base, finetune, rank)
        lost = share_lost(exact, found)

        assert truth[rank] * (1 - 1e-6) - NEAR.get(kind, 1e-12) <= lost <= truth[rank] + 1e-5
        assert found.lost / found.energy == pytest.approx(lost, rel=2e-6, abs=NEAR.get(kind, 1e-12))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_the_gram_matrix_finds_the_nearest(
    kind: str, size: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a millionth of the loss itself."""
    force_method(monkeypatch, "gram")
    base, finetune, truth = case(kind, size, dtype)
    exact = stored_delta(base, finetune)
    for rank in RANKS:
        lost = share_lost(exact, made(base, finetune, rank))

        assert lost == pytest.approx(truth[rank], rel=1e-6, abs=NEAR.get(kind, 1e-12))


@pytest.mark.parametrize("size", [(300, 700), (700, 300)], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_iteration_comes_as_near(kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As large matrices are done in float32: within 1e-6 of the least ||D - D_r||."""
    force_method(monkeypatch, "krylov")
    base, finetune, truth = case(kind, size, torch.float32)
    exact = stored_delta(base, finetune)
    for rank in (1, 8, 32):
        lost = share_lost(exact, made(base, finetune, rank)) ** 0.5

        assert lost == pytest.approx(truth[rank] ** 0.5, rel=1e-6, abs=1e-6)


@needs_int8
@pytest.mark.parametrize("size", [(300, 700), (700, 300), (600, 600)], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_directions_in_low_precision_come_near_enough(
    kind: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-5 of ||D||^2; where int8 cannot represent the spectrum, another method is used."""
    force_method(monkeypatch, "int8 krylov")
    base, finetune, truth = case(kind, size, torch.float32)
    exact = stored_delta(base, finetune)
    for rank in (1, 8, 32, 64):
        lost = share_lost(exact, made(base, finetune, rank))

        assert lost <= truth[rank] + 1e-5
        assert lost <= truth[rank] * 1.001 + 1e-7, "where next to nothing is lost, next to nothing is added"


def test_the_method_depends_on_the_shape_and_on_the_processor() -> None:
    assert factorisation_cost(512, 2048, 64, CPU).method == "gram"
    assert factorisation_cost(2048, 2048, 512, CPU).method == "gram"
    assert factorisation_cost(5120, 14336, 64, CPU).method == factorisation_cost(28672, 8192, 64, CPU).method
    assert factorisation_cost(5120, 14336, 64, CPU).method == (
        "int8 krylov" if device_rates(CPU).int8_gram else "krylov"
    )


@pytest.mark.parametrize("size", [(96, 96), (300, 700), (700, 300)], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_each_side_has_the_root_of_each_singular_value(kind: str, size: tuple[int, int]) -> None:
    base, finetune = pair(kind, size, torch.float32)
    found = made(base, finetune, 16)
    truth = np.linalg.svd(stored_delta(base, finetune), compute_uv=False)[:16]

    assert found.values == pytest.approx(truth, rel=1e-4, abs=2e-6 * truth[0])
    assert found.left.norm(dim=0).square().tolist() == pytest.approx(truth, rel=1e-3, abs=2e-6 * truth[0])
    assert found.right.norm(dim=1).square().tolist() == pytest.approx(truth, rel=1e-3, abs=2e-6 * truth[0])


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (40, 40)], ids=str)
@pytest.mark.parametrize("rank", [40, 64])
def test_at_full_rank_nothing_is_lost(size: tuple[int, int], rank: int) -> None:
    base, finetune = pair("flat", size, torch.float32)
    found = made(base, finetune, rank)

    assert found.left.shape == (size[0], 40)
    assert product(found) == pytest.approx(stored_delta(base, finetune), abs=1e-6)
    assert found.lost < 1e-11 * found.energy


def test_the_delta_is_left_as_it_is() -> None:
    delta, energy = delta_of(*pair("power law", (300, 700), torch.float32))
    before = delta.clone()
    factorise(delta, 16, energy=energy, workspace=Workspace())

    assert torch.equal(before, delta)


def test_what_rounding_costs_is_measured_on_the_rounded_factors() -> None:
    base, finetune = pair("flat", (700, 300), torch.bfloat16)
    delta, energy = delta_of(base, finetune)
    found = factorise(delta, 64, energy=energy, workspace=Workspace())
    b, a = found.left.bfloat16(), found.right.bfloat16()
    lost = residual_energy(delta, b, a, Workspace())
    truth = ((stored_delta(base, finetune) - b.double().numpy() @ a.double().numpy()) ** 2).sum()

    assert lost == pytest.approx(truth, rel=1e-6)
    assert lost > found.lost


def test_a_merged_lora_comes_back_nearer_than_it_was_published() -> None:
    """Rounding to bfloat16 is spread over all directions; truncation at the LoRA's rank drops most of it."""
    random, side, rank = np.random.default_rng(0), 512, 16
    base = torch.from_numpy(0.02 * random.standard_normal((side, side))).bfloat16()
    trained = random.standard_normal((side, rank)) @ random.standard_normal((rank, side))
    trained *= 0.003 * float(base.double().norm()) / np.linalg.norm(trained)
    published = (base.double() + torch.from_numpy(trained)).bfloat16()
    found = made(base, published, rank)
    away = np.linalg.norm(stored_delta(base, published) - trained) / np.linalg.norm(trained)
    extracted = np.linalg.norm(product(found) - trained) / np.linalg.norm(trained)

    assert away > 0.4
    assert extracted < 0.4 * away
