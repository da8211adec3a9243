"""Fused experts on one side, single ones on the other: the numbers of single against single, or no pair at all."""

from pathlib import Path

import pytest
import torch
from files import numbers, pairing, save
from safetensors.torch import load_file

import deltarank
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.results import Outcome, Results
from tiny_architectures import EXPERTS, QWEN3_MOE, architecture, fused, write_pair

RANKS = [2, 8]
MAKES = {
    "mixtral": EXPERTS["mixtral"],
    # No fused matrix is square.
    "uneven qwen3 moe": architecture("qwen3_moe", **QWEN3_MOE | {"moe_intermediate_size": 24}),
}


def trained(name: str, folder: Path) -> tuple[Path, Path]:
    """Saved by transformers: experts one by one."""
    return write_pair(MAKES[name], folder, dtype=torch.bfloat16)


def losses(results: Results) -> list[tuple[object, ...]]:
    """Of every matrix, without its name: what differs between the spellings."""
    rows = [
        (m.layer, m.shape, m.frobenius, m.base_frobenius, *(loss.energy_kept for loss in m.losses))
        for m in results.matrices
    ]
    return sorted(rows)


@pytest.mark.parametrize("name", MAKES)
def test_the_numbers_are_those_of_single_experts(name: str, tmp_path: Path) -> None:
    base, tuned = trained(name, tmp_path)
    known = deltarank.compare(base, tuned, ranks=RANKS)
    for pair in ((base, fused(tuned, tmp_path / "a")), (fused(base, tmp_path / "b"), tuned)):
        found = deltarank.compare(*pair, ranks=RANKS)

        assert losses(found) == losses(known)
        assert not [s for s in found.skipped if s.outcome in (Outcome.ONLY_IN_BASE, Outcome.ONLY_IN_FINETUNE)]
        assert any("expert by expert" in note for note in found.notes)
        assert {m.module for m in found.matrices} >= {m.module for m in known.matrices if "expert" in m.module}


def test_mixtral_names_match_those_of_transformers_5(tmp_path: Path) -> None:
    """Mixtral's w1, w3, w2 against gate, up, down, both one by one."""
    base, tuned = trained("mixtral", tmp_path)
    old = load_file(tuned / "model.safetensors")
    spelled = {"block_sparse_moe": "mlp", ".w1.": ".gate_proj.", ".w3.": ".up_proj.", ".w2.": ".down_proj."}
    new = {}
    for name, tensor in old.items():
        for before, after in spelled.items():
            name = name.replace(before, after)
        new[name] = tensor
    assert new.keys() != old.keys()

    found = deltarank.compare(base, save(tmp_path / "new", new), ranks=RANKS)

    assert losses(found) == losses(deltarank.compare(base, tuned, ranks=RANKS))
    assert any("w1, w3, w2" in note for note in found.notes)


STEM = "model.layers.0.mlp.experts"


def singles(experts: int, rows: int = 24, columns: int = 40) -> dict[str, torch.Tensor]:
    made = {"model.layers.0.self_attn.q_proj.weight": numbers(32, 32)}
    for i in range(experts):
        made |= {f"{STEM}.{i}.{part}.weight": numbers(rows, columns, seed=i) for part in ("gate_proj", "up_proj")}
        made[f"{STEM}.{i}.down_proj.weight"] = numbers(columns, rows, seed=i)
    return made


def stacks(experts: int, rows: int = 24, columns: int = 40) -> dict[str, torch.Tensor]:
    return {
        "model.layers.0.self_attn.q_proj.weight": numbers(32, 32, seed=9),
        f"{STEM}.gate_up_proj": numbers(experts, 2 * rows, columns, seed=5),
        f"{STEM}.down_proj": numbers(experts, columns, rows, seed=6),
    }


def paired(base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], home: Path) -> tuple[int, set[str]]:
    """How many experts' matrices are measured, and what belongs to one side only."""
    with open_checkpoint(save(home / "base", base)) as before, open_checkpoint(save(home / "tuned", tuned)) as after:
        plan = pair_checkpoints(before, after, experts=True)
    alone = {s.name for s in plan.skipped if s.outcome in (Outcome.ONLY_IN_BASE, Outcome.ONLY_IN_FINETUNE)}
    return sum("experts" in pair.name for pair in plan.pairs), alone


def test_every_expert_is_paired_with_its_part(tmp_path: Path) -> None:
    assert paired(singles(3), stacks(3), tmp_path) == (9, set())


@pytest.mark.parametrize("experts", [2, 4])
def test_another_number_of_experts_is_not_paired(experts: int, tmp_path: Path) -> None:
    number, alone = paired(singles(experts), stacks(3), tmp_path)

    assert number == 0
    assert alone >= {f"{STEM}.gate_up_proj", f"{STEM}.down_proj", f"{STEM}.0.up_proj.weight"}


@pytest.mark.parametrize(
    "change",
    [
        {f"{STEM}.1.up_proj.weight": None},
        {f"{STEM}.1.up_proj.weight": numbers(40, 24)},
        {f"{STEM}.1.up_proj.weight": torch.ones(24, 40, dtype=torch.int8)},
        {f"language_model.{STEM}.1.up_proj.weight": numbers(24, 40)},
        {f"{STEM}.1.w3.weight": numbers(24, 40)},
    ],
    ids=["missing", "transposed", "not plain", "there twice", "there by two names"],
)
def test_one_doubtful_expert_leaves_its_stack_unpaired(change: dict[str, torch.Tensor | None], tmp_path: Path) -> None:
    base = {name: tensor for name, tensor in (singles(3) | change).items() if tensor is not None}
    number, alone = paired(base, stacks(3), tmp_path)

    assert number == 3  # down_proj alone
    assert f"{STEM}.gate_up_proj" in alone


def test_a_square_stack_could_be_transposed_and_is_not_paired(tmp_path: Path) -> None:
    number, alone = paired(singles(2, 20, 40), stacks(2, 20, 40), tmp_path)

    assert number == 2
    assert f"{STEM}.gate_up_proj" in alone


def test_without_experts_only_whole_tensors_are_paired(tmp_path: Path) -> None:
    base, tuned = save(tmp_path / "base", singles(2)), save(tmp_path / "tuned", stacks(2))

    assert [pair.name for pair in pairing(base, tuned).pairs] == ["model.layers.0.self_attn.q_proj.weight"]
