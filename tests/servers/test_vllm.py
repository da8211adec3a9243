"""`deltarank endpoints` and `verify --live` with the real vLLM, beside the real llama.cpp.

vLLM needs an environment of its own (3.5 GB): see benchmarks/servers/vllm.py. DELTARANK_TEST_VLLM names its python.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from llama_cpp import LlamaCpp
from model_zoo import Family, sharpen, write_family
from openai_server import MODEL, serve_gguf
from transformers import AutoTokenizer
from vllm_server import PYTHON_VARIABLE, serve_vllm

import deltarank
from commands import RunCommand
from deltarank.results import EndpointResults

pytestmark = pytest.mark.servers

SHARPER = 12.0
"""Of the rows of letters in the head: a random model predicts all tokens alike, and most bytes are no characters."""

OPTIONS = ("--enable-lora", "--max-lora-rank", "8", "--max-model-len", "512", "--served-model-name", "base")


@dataclass(frozen=True)
class Running:
    """The models on disk, an adapter that holds the finetune `merged`, and what serves them, as MODEL@URL."""

    family: Family
    adapter: Path
    refs: dict[str, str]


@pytest.fixture(scope="module")
def running(llama_cpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """In vLLM the base, without and with the adapter; in llama.cpp the finetune, which is base + adapter."""
    if PYTHON_VARIABLE not in os.environ:
        pytest.skip(f"{PYTHON_VARIABLE} does not name a python with vLLM")
    folder = tmp_path_factory.mktemp("vllm")
    family = write_family("llama", folder)
    pieces = AutoTokenizer.from_pretrained(family.base).get_vocab()
    letters = [number for piece, number in pieces.items() if piece.isascii() and piece.isalnum()]
    for checkpoint in (family.base, family.merged):
        sharpen(checkpoint, SHARPER, letters)
    deltarank.extract(family.base, family.merged, output=folder / "adapter", rank=8, server="vllm")
    converted = llama_cpp.convert_model(family.merged, folder / "merged.gguf")
    assert not converted.failed, converted.log
    words = [family.base, *OPTIONS, "--lora-modules", f"mine={folder / 'adapter'}"]
    with ExitStack() as servers:
        vllm = servers.enter_context(serve_vllm(Path(os.environ[PYTHON_VARIABLE]), words, folder))
        whole = servers.enter_context(serve_gguf(folder / "merged.gguf", folder / "llama.cpp.log"))
        refs = {"adapter": f"mine@{vllm}", "base": f"base@{vllm}", "llama.cpp": f"{MODEL}@{whole}"}
        yield Running(family, folder / "adapter", refs)


@pytest.mark.parametrize(
    ("a", "b", "kind", "test"),
    [
        ("adapter", "llama.cpp", "same", "first_token_logprobs"),
        ("base", "llama.cpp", "different", "first_token_logprobs"),
        ("adapter", "adapter", "same", "prompt_logprobs"),
        ("adapter", "base", "different", "prompt_logprobs"),
    ],
)
def test_two_endpoints(
    running: Running, command: RunCommand, tmp_path: Path, a: str, b: str, kind: str, test: str
) -> None:
    """Both of vLLM give log-probabilities of the prompt; llama.cpp has none."""
    done = command("endpoints", running.refs[a], running.refs[b], "--completions", "-o", tmp_path, "--seed", 1)

    found = EndpointResults.load(tmp_path)
    assert found.verdict.kind.value == kind, done.out + done.err
    assert [each.name.value for each in found.endpoints.tests] == [test]
    assert "Both count the same tokens" in found.endpoints.template[0]


@pytest.mark.parametrize("served", ["adapter", "base"])
def test_which_model_it_is(running: Running, command: RunCommand, tmp_path: Path, served: str) -> None:
    weights = ("--weights", running.family.base, running.family.merged, "--ranks", "2", "--max-requests", 32)
    done = command("endpoints", running.refs[served], *weights, "--completions", "-o", tmp_path, "--seed", 1)

    found = EndpointResults.load(tmp_path).endpoints.identification
    assert found is not None, done.out + done.err
    excluded = {each.name for each in found.candidates if each.excluded}
    right, wrong = ("base", "finetune") if served == "base" else ("finetune", "base")
    assert found.nearest == right, done.out
    assert wrong in excluded, done.out
    assert right not in excluded, done.out


@pytest.mark.parametrize("served", ["adapter", "base"])
def test_whether_the_adapter_is_on(running: Running, command: RunCommand, served: str) -> None:
    family, live = running.family, ("--live", running.refs[served])
    done = command("verify", family.base, family.merged, running.adapter, *live, "--server", "vllm", "--json")

    assert json.loads(done.out)["live"]["verdict"] == served, done.out + done.err
