"""Sketches of deltas: linear, the same however the rows arrive, and as near to inner products as they say."""

import math

import pytest
import torch
from torch import Tensor

from deltarank.spectra import Sketcher, sketch_delta, sketch_length

LENGTH = 256


def matrices(count: int, *, rank: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    if rank is None:
        return [torch.randn(130, 70, generator=generator) for _ in range(count)]
    return [
        torch.randn(130, rank, generator=generator) @ torch.randn(rank, 70, generator=generator) for _ in range(count)
    ]


def cosine(x: Tensor, y: Tensor) -> float:
    x, y = x.double().flatten(), y.double().flatten()
    return float(x @ y / (x.norm() * y.norm()))


def test_a_sketch_is_linear() -> None:
    x, y = matrices(2)
    combined = sketch_delta(0.37 * x - 1.5 * y, LENGTH, seed=3)

    apart = 0.37 * sketch_delta(x, LENGTH, seed=3) - 1.5 * sketch_delta(y, LENGTH, seed=3)
    torch.testing.assert_close(combined, apart, rtol=0, atol=1e-5 * float(apart.norm()))


@pytest.mark.parametrize("rank", [None, 1])
def test_the_error_of_a_cosine_is_the_stated_one(rank: int | None) -> None:
    x, noise = matrices(2, rank=rank)
    y = 0.5 * x + noise
    true = cosine(x, y)
    of_norms, of_sketches = [], []
    for seed in range(200):
        sketches = [sketch_delta(each, LENGTH, seed=seed).double() for each in (x, y)]
        of_norms.append(float(sketches[0] @ sketches[1]) / float(x.norm() * y.norm()) - true)
        of_sketches.append(cosine(*sketches) - true)

    root = math.sqrt(LENGTH)
    for errors, stated in ((of_norms, math.sqrt(1 + true**2) / root), (of_sketches, (1 - true**2) / root)):
        measured = math.sqrt(sum(error**2 for error in errors) / len(errors))
        assert measured <= 1.2 * stated  # 200 draws: the standard deviation is known to 5 %
        assert abs(sum(errors) / len(errors)) <= 4 * stated / math.sqrt(len(errors))


def test_no_bit_depends_on_threads_or_on_how_the_rows_arrive() -> None:
    (x,) = matrices(1)
    whole = sketch_delta(x, LENGTH, seed=5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        again = sketch_delta(x, LENGTH, seed=5)
    finally:
        torch.set_num_threads(threads)
    in_parts = Sketcher((130, 70), LENGTH, seed=5)
    for part in torch.split(x, 7):
        in_parts.add(part)

    assert torch.equal(whole, again)
    assert torch.equal(whole, in_parts.sketch())


def test_a_sketch_depends_on_its_seed_only() -> None:
    (x,) = matrices(1)
    assert sketch_delta(x, 4, seed=1).tolist() != sketch_delta(x, 4, seed=2).tolist()
    small = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert sketch_delta(small, 4, seed=1).tolist() == sketch_delta(small, 4, seed=1).tolist()
    assert sorted(sketch_delta(torch.ones(1, 1), 4, seed=1).abs().tolist()) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("matrices", "length"), [(1, 1024), (64, 1024), (65, 1024), (224, 512), (4096, 16), (50_000, 16)]
)
def test_many_matrices_have_short_sketches(matrices: int, length: int) -> None:
    assert sketch_length(matrices) == length
