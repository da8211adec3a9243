"""A mixture of many small experts: measured in stacks, with the numbers of each alone."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltarank
from commands import StopAfter
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.jobs.compare.measure import MatrixMeasurer, group_small_matrices
from deltarank.results import MatrixResult, Outcome, Results
from deltarank.runtime import SolverOptions, ThreadPool, make_plan

EXPERTS, ROWS, COLUMNS = 40, 24, 48
RANKS = [1, 4, 8, 16]


def name_of(expert: int, module: str = "up_proj") -> str:
    return f"model.layers.0.mlp.experts.{expert}.{module}.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Experts of which most moved everywhere, and some in a way of their own."""
    home = tmp_path_factory.mktemp("experts")
    generator = torch.Generator().manual_seed(0)
    base, tuned = {}, {}
    for expert in range(EXPERTS):
        for module, shape in (("up_proj", (ROWS, COLUMNS)), ("down_proj", (COLUMNS, ROWS))):
            weight = torch.randn(shape, generator=generator)
            base[name_of(expert, module)] = weight
            tuned[name_of(expert, module)] = weight + 0.01 * torch.randn(shape, generator=generator)
    left, right = torch.randn(ROWS, 2, generator=generator), torch.randn(2, COLUMNS, generator=generator)
    tuned[name_of(3)] = base[name_of(3)].clone()
    tuned[name_of(5)] = base[name_of(5)] + 0.01 * left @ right
    tuned[name_of(7)][2, 3] = float("inf")
    tuned[name_of(9)] = tuned[name_of(9)] + left[:, :1] @ right[:1]
    tuned[name_of(11)][::2] = base[name_of(11)][::2]
    base["model.layers.0.mlp.gate.weight"] = torch.randn(EXPERTS, ROWS, generator=generator)
    tuned["model.layers.0.mlp.gate.weight"] = base["model.layers.0.mlp.gate.weight"] + 0.01
    for side, tensors in (("base", base), ("tuned", tuned)):
        (home / side).mkdir()
        save_file(tensors, home / side / "model.safetensors")
    return home / "base", home / "tuned"


@pytest.fixture(scope="module")
def results(pair: tuple[Path, Path]) -> Results:
    return deltarank.compare(*pair, ranks=RANKS)


def untimed(matrices: Mapping[str, MatrixResult]) -> dict[str, MatrixResult]:
    return {name: replace(matrix, seconds=None) for name, matrix in matrices.items()}


def test_every_expert_s_losses_are_numpy_s(pair: tuple[Path, Path], results: Results) -> None:
    before, after = (load_file(side / "model.safetensors") for side in pair)

    assert len(results.matrices) == 2 * EXPERTS + 1
    for matrix in results.measured:
        delta = after[matrix.name].double().numpy() - before[matrix.name].double().numpy()
        energies = np.linalg.svd(delta, compute_uv=False) ** 2
        for loss in matrix.losses:
            kept = energies[: loss.rank].sum() / energies.sum() if energies.any() else 1.0
            assert loss.cosine_distance == pytest.approx(1 - math.sqrt(kept), abs=1e-6), matrix.name


def test_each_expert_has_its_own_outcome(results: Results) -> None:
    outcomes = {m.name: m.outcome for m in results.matrices if m.outcome is not Outcome.MEASURED}
    planted = next(m for m in results.matrices if m.name == name_of(5))

    assert outcomes == {name_of(3): Outcome.IDENTICAL, name_of(7): Outcome.NOT_FINITE}
    assert planted.loss(4).energy_lost < 1e-6
    assert planted.signal_rank == 2


def test_neither_the_stack_nor_the_number_of_workers_changes_a_number(
    pair: tuple[Path, Path], results: Results
) -> None:
    settings = SolverOptions(ranks=RANKS)
    found = {m.name: m for m in results.matrices}
    with open_checkpoint(pair[0]) as base, open_checkpoint(pair[1]) as tuned:
        steps = make_plan(base, tuned, pair_checkpoints(base, tuned), settings).steps
        measurer = MatrixMeasurer(settings)
        alone = {step.pair.name: measurer.result(step) for step in steps}
        groups = group_small_matrices(steps)
        pools = [ThreadPool(lambda: MatrixMeasurer(settings), workers) for workers in (1, 2, 3)]
        side_by_side = [{m.name: m for m in dict(pool.results(groups)).values()} for pool in pools]
        in_threes = [measurer.results(group[i : i + 3]) for group in groups for i in range(0, len(group), 3)]

    assert len(groups) == 3  # up, down, gate
    assert untimed({m.name: m for part in in_threes for m in part}) == untimed(found)
    assert [untimed(each) for each in side_by_side] == [untimed(found)] * 3
    for name, matrix in alone.items():
        assert found[name].outcome is matrix.outcome
        for ours, theirs in zip(found[name].losses, matrix.losses, strict=True):
            assert ours.cosine_distance == pytest.approx(theirs.cosine_distance, abs=1e-6)
        for field in ("frobenius", "base_frobenius", "mean_abs", "rounding_floor"):
            assert getattr(found[name], field) == getattr(matrix, field)


def test_a_run_that_was_stopped_ends_with_the_same_numbers(
    pair: tuple[Path, Path], results: Results, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        deltarank.compare(*pair, ranks=RANKS, output=tmp_path / "run", progress=StopAfter(30))
    kept = [json.loads(line)["name"] for line in (tmp_path / "run" / "matrices.jsonl").read_text().splitlines()]
    again = deltarank.compare(*pair, ranks=RANKS, output=tmp_path / "run")

    assert 0 < len(kept) < len(results.matrices)
    assert untimed({m.name: m for m in again.matrices}) == untimed({m.name: m for m in results.matrices})


def test_an_unreadable_expert_does_not_affect_the_others(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The file is cut short after its header was read."""
    tuned = tmp_path / "model.safetensors"
    tuned.write_bytes((pair[1] / "model.safetensors").read_bytes())

    class Cut(deltarank.ProgressListener):
        def planned(self, plan: deltarank.Plan) -> None:
            last = max(step.pair.finetune.start for step in plan.steps)
            with tuned.open("r+b") as file:
                file.truncate(last)

    found = deltarank.compare(pair[0], tuned, ranks=RANKS, progress=Cut())
    outcomes = [m.outcome for m in found.matrices]

    assert outcomes.count(Outcome.UNREADABLE) == 1
    assert outcomes.count(Outcome.MEASURED) >= 2 * EXPERTS - 3
