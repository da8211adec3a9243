"""`deltarank endpoints --weights` beside the real llama.cpp: the base, the finetune and its q4_0 are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_cpp import LlamaCpp
from model_zoo import write_family
from openai_server import MODEL, serve_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from commands import RunCommand
from deltarank.results import EndpointResults

pytestmark = pytest.mark.servers

SHARPER = 12.0
"""Of the rows of letters in the head: a random model predicts all tokens alike, and most bytes are no characters."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("identification")
    family = write_family("llama", folder)
    pieces = AutoTokenizer.from_pretrained(family.base).get_vocab()
    letters = [number for piece, number in pieces.items() if piece.isascii() and piece.isalnum()]
    for checkpoint in (family.base, family.finetune):
        weights = load_file(checkpoint / "model.safetensors")
        weights["lm_head.weight"][letters] *= SHARPER
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return {"base": family.base, "finetune": family.finetune}


@pytest.mark.parametrize(
    ("served", "api"), [("base", "--completions"), ("finetune", "--completions"), ("finetune", "--chat")]
)
def test_what_llama_cpp_serves_is_found(
    checkpoints: dict[str, Path], llama_cpp: LlamaCpp, command: RunCommand, tmp_path: Path, served: str, api: str
) -> None:
    """Of a model without a chat template, llama.cpp's own is in each prompt of a chat: nothing can be said then."""
    converted = llama_cpp.convert_model(checkpoints[served], tmp_path / "model.gguf")
    assert not converted.failed, converted.log
    weights = ("--weights", checkpoints["base"], checkpoints["finetune"], "--ranks", "2,8,32", "--yardstick", "q4_0")
    with serve_gguf(tmp_path / "model.gguf", tmp_path / "log") as address:
        done = command("endpoints", f"{MODEL}@{address}", *weights, api, "-o", tmp_path / "run", "--seed", 1)

    results = EndpointResults.load(tmp_path / "run")
    found = results.endpoints.identification
    if api == "--chat":
        assert results.verdict.kind.value == "template_differs", done.out
        return
    assert found is not None, done.out + done.err
    by_name = {each.name: each for each in found.candidates}
    assert found.nearest == served, done.out
    assert by_name[served].kld is None or by_name[served].kld < 0.002
    assert not by_name[served].excluded
    assert by_name["base" if served == "finetune" else "finetune"].excluded
