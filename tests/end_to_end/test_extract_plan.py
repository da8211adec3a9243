"""`deltarank extract --dry-run`: what it foretells is what `extract` then does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import MATRICES, base_weights, full_finetune, write

import deltarank
from deltarank.cli import main
from deltarank.errors import UsageError
from tiny_architectures import DENSE, write_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("models")
    base = {name: w.bfloat16().float() for name, w in base_weights().items()}
    return write(home / "base", base), write(home / "full", full_finetune(base))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(DENSE["llama"], tmp_path_factory.mktemp("llama"))


def plan_of(capsys: pytest.CaptureFixture[str], *words: object) -> Mapping[str, Any]:
    assert main(["extract", *map(str, words), "--dry-run", "--json"]) == 0
    plan: Mapping[str, Any] = json.loads(capsys.readouterr().out)
    return plan


@pytest.mark.parametrize("server", ["portable", "vllm", "peft"])
def test_what_is_foretold_is_what_is_done(
    llama: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    plan = plan_of(capsys, *llama, "-r", 32, "--server", server)
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


def test_a_dry_run_writes_nothing_and_names_what_stays_out(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["extract", *map(str, pair), "-r", "8", "--dry-run", "--server", "vllm"])
    printed = capsys.readouterr()

    assert (code, printed.err) == (0, "")
    assert f"{MATRICES} matrices to extract" in printed.out
    assert "left out: 2 tensors: vLLM cannot load norms (" in printed.out
    assert "On disk: " in printed.out
    assert "Peak memory: " in printed.out
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_rank_is_foretold_by_the_largest_that_may_be_taken(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("-r", "auto", "--max-error", "0.5")
    plan = plan_of(capsys, *pair, *asked)
    main(["extract", *map(str, pair), *asked, "--dry-run"])
    adapter = deltarank.extract(*pair, rank="auto", max_error=0.5, output=tmp_path / "a")

    assert plan["rank"] == "auto"
    assert (tmp_path / "a" / "adapter_model.safetensors").stat().st_size < plan["adapter_bytes"] + 20_000
    assert max(m["rank"] for m in plan["matrices"]) >= adapter.rank
    assert "relative error of at most 0.5; the figures below are for rank 32" in capsys.readouterr().out


def test_layers_that_get_zeros_and_padding_are_told(
    pair: tuple[Path, Path], llama: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["extract", *map(str, pair), "-r", "8", "--dry-run", "--exclude", "*layers.0.mlp.up_proj*"])
    zeros = capsys.readouterr().out
    main(["extract", *map(str, llama), "-r", "32", "--dry-run"])
    padded = capsys.readouterr().out

    assert "zeros for 1 module, because every layer is required: model.layers.0.mlp.up_proj" in zeros
    assert "4 matrices of a smaller rank are padded with zeros: self_attn.k_proj and self_attn.v_proj" in padded


def test_a_dry_run_refuses_what_extract_refuses(pair: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError) as refused:
        deltarank.plan_extraction(*pair, rank=48)

    assert refused.value.slug == "illegal-rank"
