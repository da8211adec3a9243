"""The rank-r deltas of `outputs`: one decomposition for every rank, laid over either checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltarank.checkpoints import Checkpoint, open_checkpoint, pair_checkpoints
from deltarank.jobs.outputs.low_rank import LowRankDeltas, MatrixDecomposer, factor_bytes, lora_matrices
from deltarank.models import Edit, EditedWeights, load_model, read_skeleton
from deltarank.runtime import SolverOptions, make_plan
from tiny_architectures import DENSE, EXPERTS, logits, logits_of, write_pair

CPU = torch.device("cpu")
ALL = {**DENSE, **EXPERTS}
LARGEST = 64
"""No side of these models is longer: every rank up to it is held."""


@pytest.fixture(scope="module", params=list(ALL))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(ALL[request.param], tmp_path_factory.mktemp("pair"))


def loaded_logits(checkpoint: Checkpoint, edits: Sequence[Edit]) -> Tensor:
    weights = EditedWeights(checkpoint, edits, CPU)
    return logits_of(load_model(read_skeleton(checkpoint), weights, dtype=torch.float32, device=CPU))


def decomposed(before: Checkpoint, after: Checkpoint, folder: Path, rank: int = LARGEST) -> LowRankDeltas:
    settings = SolverOptions(ranks=(rank,), solver="exact")
    pairing = pair_checkpoints(before, after)
    plan = make_plan(before, after, pairing, settings)
    numbers = {step.pair.name: number for number, step in enumerate(plan.steps)}

    def factor_file(name: str) -> Path:
        return folder / f"{numbers[name]}.factors"

    found = MatrixDecomposer(settings, rank).results(plan.steps)
    for each in found:
        each.write(factor_file(each.result.matrix))
    pairs = {each.name: each for each in pairing.pairs}
    return LowRankDeltas(pairs, {each.result.matrix: each.result for each in found}, factor_file, CPU)


def test_full_rank_everywhere_is_the_finetune_and_rank_0_the_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """All of D in the matrices; what is no matrix is taken from the finetune, by transformers' own loading."""
    with open_checkpoint(pair[0]) as base, open_checkpoint(pair[1]) as tuned:
        low = decomposed(base, tuned, tmp_path)
        full = loaded_logits(tuned, low.finetune_edits(LARGEST, list(low.pairs)))
        none = loaded_logits(base, low.base_edits(0))

    truth, start = logits(pair[1]), logits(pair[0])
    assert (truth - start).abs().max() > 1e-2
    assert torch.allclose(full, truth, atol=1e-4 * float(truth.abs().max()), rtol=0)
    assert torch.equal(none, start)


def test_a_smaller_rank_is_the_truncated_svd(tmp_path: Path) -> None:
    folders = write_pair(ALL["llama"], tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in folders)
    with open_checkpoint(folders[0]) as base, open_checkpoint(folders[1]) as tuned:
        low = decomposed(base, tuned, tmp_path)
        weights = EditedWeights(base, low.base_edits(3), CPU)
        assert low.pairs
        for name in low.pairs:
            u, s, v = torch.linalg.svd(after[name].double() - before[name].double(), full_matrices=False)
            best = before[name].double() + (u[:, :3] * s[:3]) @ v[:3]
            assert torch.allclose(weights[name][...].double(), best, atol=1e-6)
            assert low.decompositions[name].lost_at(3) == pytest.approx(float((s[3:] ** 2).sum()), rel=1e-4)


@pytest.mark.parametrize("rank", [2, LARGEST])
def test_the_factor_files_have_the_planned_bytes(tmp_path: Path, rank: int) -> None:
    folders = write_pair(ALL["mixtral"], tmp_path)
    with open_checkpoint(folders[0]) as base, open_checkpoint(folders[1]) as tuned:
        pairs = decomposed(base, tuned, tmp_path, rank).pairs

    assert factor_bytes(list(pairs.values()), rank) == sum(file.stat().st_size for file in tmp_path.glob("*.factors"))


def test_identical_matrices_are_not_edited(tmp_path: Path) -> None:
    folder, tuned_folder = write_pair(ALL["llama"], tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1  # a vector, which has no factors
    save_file(weights, tuned_folder / "model.safetensors")
    with open_checkpoint(folder) as base, open_checkpoint(tuned_folder) as tuned:
        low = decomposed(base, tuned, tmp_path)
        assert low.base_edits(4) == low.finetune_edits(4, list(low.pairs)) == []
        assert low.lost(4, list(low.pairs)) == (0.0, 0.0)

    assert not list(tmp_path.glob("*.factors"))


def test_routers_and_heads_have_no_factors(tmp_path: Path) -> None:
    base_folder, tuned_folder = write_pair(EXPERTS["mixtral"], tmp_path)
    with open_checkpoint(base_folder) as base, open_checkpoint(tuned_folder) as tuned:
        pairs = pair_checkpoints(base, tuned).pairs
        left = {each.name for each in pairs} - {each.name for each in lora_matrices(pairs)}

    assert left == {f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in (0, 1)}
