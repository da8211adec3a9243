"""The optimiser of a calibration, held against numpy's SVD in float64."""

import numpy as np
import pytest
import torch

from deltarank.jobs.calibrate.muon import MOMENTUM, Muon, orthogonalise

SHAPES = [(3, 40), (40, 3), (5, 5), (1, 7), (7, 1)]


def exact(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def moved(factor: torch.Tensor, gradients: list[torch.Tensor], rate: float = 0.5) -> torch.Tensor:
    """How far the last of these gradients moves a factor."""
    parameter = torch.nn.Parameter(factor.clone())
    muon = Muon([{"params": [parameter], "lr": rate}])
    for gradient in gradients:
        before, parameter.grad = parameter.detach().clone(), gradient
        muon.step()
    return before - parameter.detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
def test_the_singular_values_become_one_and_the_vectors_stay(shape, size):
    matrix = size * torch.randn(shape, generator=torch.manual_seed(0))
    assert orthogonalise(matrix).numpy() == pytest.approx(exact(matrix.double().numpy()), abs=1e-5)


def test_singular_values_of_a_thousandth_count_as_much_as_the_largest():
    generator = torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(side, 4, generator=generator))[0] for side in (4, 30))
    matrix = left @ torch.diag(torch.tensor([1.0, 0.1, 0.01, 1e-3])) @ right.T
    assert np.linalg.svd(orthogonalise(matrix).numpy(), compute_uv=False) == pytest.approx(np.ones(4), abs=1e-3)


def test_directions_without_a_gradient_are_not_moved():
    """As those of a rank beyond the rank of the change: their rows of A, or columns of B, are zero."""
    matrix = torch.randn(4, 30, generator=torch.manual_seed(0))
    matrix[2] = 0
    made = orthogonalise(matrix)
    assert not made[2].any()
    assert made[[0, 1, 3]].numpy() == pytest.approx(exact(matrix[[0, 1, 3]].double().numpy()), abs=1e-5)
    assert not orthogonalise(torch.zeros(4, 30)).any()


@pytest.mark.parametrize("shape", [*SHAPES, (9,)])
def test_the_movement_has_the_rate_as_its_root_mean_square_however_long_the_gradient_is(shape):
    for size in (1e-9, 1e3):
        gradient = size * torch.randn(shape, generator=torch.manual_seed(0))
        movement = moved(torch.zeros(shape), [gradient], rate=0.5)
        assert float(movement.square().mean().sqrt()) == pytest.approx(0.5, rel=1e-4)
        assert float((movement * gradient).sum()) > 0, "down the gradient"


def test_the_momentum_is_nesterovs():
    first, second = (torch.randn(3, 20, generator=torch.manual_seed(seed)) for seed in (0, 1))
    expected = second + MOMENTUM * (MOMENTUM * first + second)
    movement = moved(torch.zeros(3, 20), [first, second], rate=0.1)
    assert movement.numpy() == pytest.approx(0.1 * 20**0.5 * exact(expected.double().numpy()), abs=1e-5)
