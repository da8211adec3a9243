"""The same code on a GPU: run with `pytest -m gpu` on a machine that has one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltarank
from laws.matrices import MAKERS, cosine_distance, pair, stored_delta, true_shares_lost

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RANKS = (8, 64)


@pytest.mark.parametrize("solver", ["exact", "krylov"])
def test_a_gpu_gives_the_numbers_of_float64(tmp_path: Path, solver: str) -> None:
    before, after = {}, {}
    for i, kind in enumerate(MAKERS):
        name = f"model.layers.{i}.mlp.up_proj.weight"
        before[name], after[name] = pair(kind, (700, 1400), torch.bfloat16)
    for side, weights in (("base", before), ("finetune", after)):
        (tmp_path / side).mkdir()
        save_file(weights, tmp_path / side / "model.safetensors")
    results = deltarank.compare(
        tmp_path / "base", tmp_path / "finetune", ranks=RANKS, solver=solver, device="cuda", output=tmp_path / "run"
    )

    assert len(results.measured) == len(MAKERS)
    for matrix in results.measured:
        truth = true_shares_lost(stored_delta(before[matrix.name], after[matrix.name]), RANKS)
        for rank in RANKS:
            assert matrix.loss(rank).cosine_distance == pytest.approx(cosine_distance(truth[rank]), abs=2e-4)
