"""Small matrices measured in a batch: the laws of one alone, independent of the rest of the batch."""

import numpy as np
import pytest
import torch

from deltarank.spectra import (
    RoundingNoise,
    Spectrum,
    Sums,
    Workspace,
    batch_size,
    measure_batch,
    subtract,
    subtract_batch,
)
from laws.matrices import MAKERS, RANKS, cosine_distance, measured, pair, stored_delta, true_shares_lost

SIZES = ((96, 96), (40, 120), (120, 40), (1, 300), (300, 1), (256, 512))
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def measured_in_batch(pairs: Pairs, ranks: tuple[int, ...] = RANKS) -> tuple[list[Spectrum | None], list[Sums]]:
    """Measures a batch as `compare` does, without files."""
    workspace = Workspace()
    base, finetune = (torch.stack(side) for side in zip(*pairs, strict=True))
    deltas = torch.empty(base.shape, dtype=torch.float32)
    noises = [RoundingNoise() for _ in pairs]
    sums = subtract_batch(base, finetune, out=deltas, workspace=workspace, noises=noises)
    edges = [noise.edge() for noise in noises]
    before = deltas.clone()
    found = measure_batch(deltas, [x.energy for x in sums], ranks=ranks, edges=edges, workspace=workspace)

    assert torch.equal(before.nan_to_num(), deltas.nan_to_num())  # spectra that are None are measured from them
    return found, sums


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("size", SIZES)
def test_a_batch_of_every_kind_agrees_with_an_svd_in_float64(size: tuple[int, int], stored: str) -> None:
    """Where the batch gives a spectrum; it does so where one matrix alone needs no refinement."""
    pairs = [pair(kind, size, STORED[stored]) for kind in MAKERS]
    for ranks in (RANKS, (64,), (4,)):
        spectra, sums = measured_in_batch(pairs, ranks)
        for kind, spectrum, each, (base, finetune) in zip(MAKERS, spectra, sums, pairs, strict=True):
            if spectrum is None:
                continue
            truth = true_shares_lost(stored_delta(base, finetune), ranks)
            alone, _ = measured(base, finetune, solver="exact", ranks=ranks)

            assert (spectrum.solver, spectrum.complete) == ("exact", True)
            assert spectrum.values == pytest.approx(alone.values, rel=1e-5, abs=1e-3 * alone.values[0])
            for rank in ranks:
                found = cosine_distance(spectrum.lost(rank) / each.energy)
                assert found == pytest.approx(cosine_distance(truth[rank]), abs=1e-6), (kind, rank)


def test_a_flat_spectrum_is_measured_in_the_batch_and_a_planted_one_is_not() -> None:
    """Otherwise batches would gain nothing, or a small loss would be found by subtraction."""
    kinds = ("flat", "gentle", "planted 16", "one dominant", "flat")
    spectra, _ = measured_in_batch([pair(kind, (96, 200), torch.float32) for kind in kinds], (8, 16, 64))

    assert [spectrum is not None for spectrum in spectra] == [True, True, False, False, True]


@pytest.mark.parametrize("size", [(20, 50), (64, 128), (128, 256)])
def test_the_rest_of_the_batch_does_not_matter(size: tuple[int, int]) -> None:
    """A resumed run has other batches, and the same numbers to the last bit."""
    random = np.random.default_rng(1)
    base = torch.from_numpy(random.standard_normal((23, *size))).bfloat16()
    finetune = (base.double() + 0.05 * torch.from_numpy(random.standard_normal((23, *size)))).bfloat16()
    pairs = list(zip(base, finetune, strict=True))
    whole = measured_in_batch(pairs)
    for length in (1, 2, 7):
        parts = [measured_in_batch(pairs[i : i + length]) for i in range(0, len(pairs), length)]

        assert [spectrum for part in parts for spectrum in part[0]] == whole[0]
        assert [sums for part in parts for sums in part[1]] == whole[1]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("size", [(3, 5), (32, 32), (40, 77), (1, 1024), (50, 1025)])
def test_the_sums_of_a_batch_are_those_of_each_alone(size: tuple[int, int], stored: str) -> None:
    pairs = [pair("flat", size, STORED[stored]), pair("power law", size, STORED[stored])]
    alone = [subtract(*each, out=torch.empty(size), workspace=Workspace()) for each in pairs]

    assert measured_in_batch(pairs)[1] == alone


def test_a_matrix_that_cannot_be_solved_has_no_spectrum() -> None:
    """A NaN in one matrix can fail the whole batch, but none gets a wrong spectrum."""
    pairs = [pair("flat", (30, 40), torch.float32) for _ in range(3)]
    pairs[1][1][0, 0] = float("nan")
    spectra, sums = measured_in_batch([(a.clone(), b.clone()) for a, b in pairs])

    assert spectra[1] is None
    assert [each.is_finite for each in sums] == [True, False, True]


def test_rows_of_zeros_are_solved_or_have_no_spectrum() -> None:
    """MKL's eigensolver has failed on them, or returned NaN."""
    spectra, _ = measured_in_batch([pair("few rows", (96, 96), torch.bfloat16)] * 5)

    assert all(np.isfinite(spectrum.values).all() for spectrum in spectra if spectrum is not None)


def test_only_small_matrices_are_batched_and_a_batch_is_bounded() -> None:
    for rows, columns in ((1, 1), (64, 128), (256, 512), (512, 256), (7, 10_000)):
        assert 1 < batch_size(rows, columns) <= (1 << 20) // (rows * columns)
    for rows, columns in ((768, 2048), (256, 513), (0, 5), (1 << 20, 1)):
        assert batch_size(rows, columns) == 1
