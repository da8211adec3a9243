"""The pages of docs/how-to, run: their commands and their Python, in their order, on tiny models."""

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import peft_adapters as made
from deltarank.cli import main
from deltarank.servers import get_server

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "extract-verify-serve.md"


def blocks() -> list[tuple[str, str]]:
    """The language and the text of each, in their order."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(language: str, block: str, names: dict[str, Any]) -> None:
    """A block of Python, or the lines of a shell that call deltarank."""
    if language == "python":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(block, names)
        return
    for line in block.splitlines():
        if line.startswith("deltarank "):
            # No server runs at the address of the page; test_verify_live.py asks servers that do.
            assert main(shlex.split(line)[1:]) == ("--live" in line), line


def test_extract_verify_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And base with adapter answers as the finetune does: at rank 64 these matrices lose nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base = made.write_base(made.wide_llama, tmp_path / "base")
    weights = made.tensors(base)
    moved = made.tensors(made.finetune(base, tmp_path / "moved"))
    made.write_checkpoint(
        tmp_path / "finetune", {name: moved[name] if "_proj" in name else w for name, w in weights.items()}, base
    )
    names: dict[str, Any] = {}
    for language, block in blocks():
        run(language, block, names)
    captured = capsys.readouterr()
    printed = " ".join(captured.out.split())
    assert "within 0.01 % of optimal" in printed
    assert "merged holds adapter exactly" in printed
    assert "Endpoint of --live (localhost:8000) cannot be reached" in captured.err

    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        served = names["merged"](tokens).logits
        truth = AutoModelForCausalLM.from_pretrained("finetune")(tokens).logits
        plain = AutoModelForCausalLM.from_pretrained("base")(tokens).logits
    assert float((served - truth).abs().max()) < 1e-3 * float((plain - truth).abs().max())


def test_the_page_shows_the_commands_that_model_cards_show() -> None:
    text = "\n".join(block for _, block in blocks())

    for name in ("vllm", "sglang", "llama.cpp"):
        assert get_server(name).serve_command.format(base="base", adapter="adapter", slot=64) in text
