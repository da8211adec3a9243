"""A run of very many matrices keeps less of each spectrum, and what a verdict needs."""

import pytest

from deltarank.jobs.compare.spectrum_detail import SpectrumDetail
from deltarank.results import DEFAULT_RANKS


@pytest.mark.parametrize("matrices", [0, 1, 224, 1900])
def test_a_usual_run_keeps_all_values_up_to_its_highest_rank(matrices: int) -> None:
    detail = SpectrumDetail.of_run(matrices, DEFAULT_RANKS)

    assert (detail.values, detail.points) == (512, 40)
    assert SpectrumDetail.of_run(matrices, (8,)).values == 64


def test_a_run_of_fifty_thousand_matrices_stays_readable() -> None:
    detail = SpectrumDetail.of_run(50_000, DEFAULT_RANKS)

    assert (detail.values, detail.points) == (20, 12)
    assert 50_000 * detail.nbytes < 400_000_000


def test_more_matrices_never_keep_more() -> None:
    sizes = [SpectrumDetail.of_run(number, DEFAULT_RANKS).nbytes for number in range(1, 100_000, 997)]

    assert sizes == sorted(sizes, reverse=True)


def test_a_low_rank_delta_keeps_what_stands_above_its_noise_edge() -> None:
    """The verdict recognises a merged LoRA by their sum."""
    detail = SpectrumDetail.of_run(50_000, DEFAULT_RANKS)

    assert detail.values_of(64, 768, DEFAULT_RANKS) == 65
    assert detail.values_of(8, 768, DEFAULT_RANKS) == 20
    assert detail.values_of(700, 768, DEFAULT_RANKS) == 20
    assert detail.values_of(None, 768, DEFAULT_RANKS) == 20
