"""`deltarank extract --dry-run`: the plan is what `extract` then does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import MATRICES, base_weights, full_finetune, write

import deltarank
from commands import RunCommand

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    home = tmp_path_factory.mktemp("models")
    base = base_weights()
    return write(home / "base", base), write(home / "full", full_finetune(base))


def plan_of(command: RunCommand, *words: object) -> Mapping[str, Any]:
    plan: Mapping[str, Any] = json.loads(command("extract", *words, "--dry-run", "--json").out)
    return plan


@pytest.mark.parametrize("server", ["portable", "vllm", "peft"])
def test_the_plan_is_what_extract_does(llama: Pair, tmp_path: Path, command: RunCommand, server: str) -> None:
    plan = plan_of(command, *llama, "-r", 32, "--server", server)
    adapter = deltarank.extract(*llama, rank=32, server=server, output=tmp_path / "a")
    weights = (tmp_path / "a" / "adapter_model.safetensors").stat().st_size
    left = {(tensor.name, tensor.reason) for tensor in adapter.budget.tensors}

    assert [(m["name"], m["path"], m["rank"]) for m in plan["matrices"]] == [
        (m.name, m.path, m.rank) for m in adapter.matrices
    ]
    assert left == {(x["name"], x["reason"]) for x in plan["left_out"]}
    assert bool(plan["carried"]) == (server == "peft")
    assert (plan["rank"], plan["dtype"], plan["server"]) == (32, adapter.dtype, server)
    assert plan["adapter_bytes"] <= weights < plan["adapter_bytes"] + 20_000  # and the header
    assert plan["disk_bytes"] == 2 * plan["adapter_bytes"]


def test_a_dry_run_writes_nothing_and_lists_what_is_left_out(
    pair: Pair, tmp_path: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = command("extract", *pair, "-r", 8, "--dry-run", "--server", "vllm")

    assert (printed.code, printed.err) == (0, "")
    assert f"{MATRICES} matrices to extract" in printed.out
    assert "left out: 2 tensors: vLLM cannot load norms (" in printed.out
    assert "On disk: " in printed.out
    assert "Peak memory: " in printed.out
    assert list(tmp_path.iterdir()) == []


def test_the_plan_of_an_automatic_rank_is_for_the_largest(pair: Pair, tmp_path: Path, command: RunCommand) -> None:
    asked = ("-r", "auto", "--max-error", "0.5")
    plan = plan_of(command, *pair, *asked)
    printed = command("extract", *pair, *asked, "--dry-run").out
    adapter = deltarank.extract(*pair, rank="auto", max_error=0.5, output=tmp_path / "a")

    assert plan["rank"] == "auto"
    assert (tmp_path / "a" / "adapter_model.safetensors").stat().st_size < plan["adapter_bytes"] + 20_000
    assert max(m["rank"] for m in plan["matrices"]) >= adapter.rank
    assert "relative error of at most 0.5; the figures below are for rank 32" in printed


def test_zeros_and_padding_are_listed(pair: Pair, llama: Pair, command: RunCommand) -> None:
    zeros = command("extract", *pair, "-r", 8, "--dry-run", "--exclude", "*layers.0.mlp.up_proj*").out
    padded = command("extract", *llama, "-r", 32, "--dry-run").out

    assert "zeros for 1 module, because servers need them beside the others: model.layers.0.mlp.up_proj" in zeros
    assert "4 matrices of a smaller rank are padded with zeros: self_attn.k_proj and self_attn.v_proj" in padded
