"""What storage rounding explains of a loss, beside the rounding errors themselves."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltarank
from deltarank.results import noise_shares

SHAPE, RANKS = (384, 640), (4, 16, 64)


def pair(folder: Path, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """W0 and W in bfloat16, W of a decaying change of this relative norm; returns D and its rounding errors."""
    generator = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(SHAPE, generator=generator)).bfloat16().double()
    u, v = (torch.linalg.qr(torch.randn(n, 200, generator=generator).double()).Q for n in SHAPE)
    change = (u * torch.exp(-torch.arange(200) / 25.0)) @ v.T
    wanted = base + size * base.norm() / change.norm() * change
    tuned = wanted.bfloat16()
    for name, weights in (("base", base.bfloat16()), ("tuned", tuned)):
        (folder / name).mkdir(parents=True)
        save_file({"model.layers.0.mlp.up_proj.weight": weights}, folder / name / "model.safetensors")
    return tuned.double() - base, tuned.double() - wanted


@pytest.mark.parametrize("size", [0.004, 0.02, 0.1])
def test_shares_of_rounding_and_signal_are_those_of_the_errors_and_the_singular_values(
    size: float, tmp_path: Path
) -> None:
    """Below half a unit in the last place, the floor overstates the errors: by an eighth at the smallest change."""
    delta, errors = pair(tmp_path, size)
    results = deltarank.compare(tmp_path / "base", tmp_path / "tuned", ranks=RANKS, solver="exact")
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    signal = s[s > results.matrices[0].noise_edge]
    for rank in RANKS:
        left, right = u[:, :rank] @ u[:, :rank].T, vh[:rank].T @ vh[:rank]
        beyond = errors - left @ errors
        actual = float((beyond - beyond @ right).square().sum() / s[rank:].square().sum())
        shares = noise_shares(results.matrices, rank)

        assert shares.rounding_lost <= 1.15 * actual
        assert rank > 4 or shares.rounding_lost > 0.8 * actual
        kept = float(signal[:rank].square().sum() / signal.square().sum())
        assert shares.signal_kept == pytest.approx(kept, abs=1e-6)


def test_shares_that_are_not_known_are_not_stated(tmp_path: Path) -> None:
    pair(tmp_path, 0.02)
    results = deltarank.compare(tmp_path / "base", tmp_path / "tuned", ranks=4, solver="krylov")

    assert results.matrices[0].signal_rank is None
    assert noise_shares(results.matrices, 4).signal_kept is None
