"""`--check`: exit code 3 if the result is not as it should be, with the same output as without it."""

import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import base_weights, full_finetune, merged_lora, write

import deltarank
from commands import RunCommand


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, full, lora (of rank 2), unrelated, broken (with a NaN), and an adapter extracted from lora. Only read."""
    home = tmp_path_factory.mktemp("models")
    weights = base_weights()
    write(home / "base", weights)
    write(home / "full", full_finetune(weights))
    write(home / "lora", merged_lora(weights, 2))
    write(home / "unrelated", {name: torch.randn_like(w.float()).to(w.dtype) for name, w in weights.items()})
    broken = full_finetune(weights)
    next(w for name, w in broken.items() if "q_proj" in name)[0, 0] = float("nan")
    write(home / "broken", broken)
    deltarank.extract(home / "base", home / "lora", rank=2, server="peft", output=home / "adapter")
    return home


@pytest.mark.parametrize(
    ("finetune", "words", "code", "reason"),
    [
        ("lora", [], 0, None),
        ("lora", ["--max-error", "0.5"], 0, None),
        ("full", ["--max-error", "1"], 0, None),
        ("full", ["--max-error", "0.05"], 3, "the relative error at rank 4 is 0."),
        ("unrelated", [], 3, "the verdict is 'unrelated'"),
        ("broken", [], 3, "1 matrix could not be measured: model.layers.0"),
    ],
)
def test_compare(
    finetune: str, words: list[str], code: int, reason: str | None, models: Path, tmp_path: Path, command: RunCommand
) -> None:
    given = ["compare", models / "base", models / finetune, "--ranks", "2,4", "--no-report", "-q", "--json"]
    done = command(*given, "-o", tmp_path / "run", "--check", *words)

    assert done.code == code, done.err
    assert (reason is None and done.err == "") or f"Check failed: {reason}" in done.err
    assert json.loads(done.out) == json.loads((tmp_path / "run" / "results.json").read_text())
    assert command(*given, "-o", tmp_path / "run").code == 0


@pytest.mark.parametrize(
    ("finetune", "words", "code", "kind"),
    [
        ("lora", [], 0, "optimal"),
        ("full", [], 3, None),
        ("full", ["--merged"], 3, None),
    ],
)
def test_verify(
    finetune: str, words: list[str], code: int, kind: str | None, models: Path, command: RunCommand
) -> None:
    given = ["verify", models / "base", models / finetune, models / "adapter", "--json", "-q", *words]
    done = command(*given, "--check")
    found = json.loads(done.out)["kind"]

    assert done.code == code, found
    assert kind in (None, found)
    assert done.err == ("" if code == 0 else f"deltarank: Check failed: the verdict is {found!r}.\n")
    assert command(*given).code == 0


@pytest.mark.parametrize("words", [["--max-error", "0.1"], ["--check", "--dry-run"], ["--check", "--max-error", "2"]])
def test_options_that_do_not_go_together(words: list[str], models: Path, command: RunCommand) -> None:
    assert command("compare", models / "base", models / "full", *words).code == 2
