"""`deltarank endpoints` between real servers: a finetune and its LoRA, and one model on two kinds of servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from llama_cpp import LlamaCpp
from model_zoo import sharpen, write_family
from openai_server import MODEL, serve_gguf

import deltarank
from commands import RunCommand
from deltarank.results import EndpointResults
from fake_endpoint import FakeEndpoint, serving
from transformers_endpoint import serves

pytestmark = pytest.mark.servers

RANK = 2


@pytest.fixture(scope="module")
def addresses(llama_cpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The finetune and its LoRA on the base, both in llama.cpp; and the finetune in transformers."""
    folder = tmp_path_factory.mktemp("lora")
    family = write_family("llama", folder)
    base, finetune = family.base, family.finetune
    for checkpoint in (base, finetune):
        sharpen(checkpoint)
    deltarank.extract(base, finetune, output=folder / "lora", rank=RANK, server="llama.cpp")
    for done in (
        llama_cpp.convert_model(base, folder / "base.gguf"),
        llama_cpp.convert_model(finetune, folder / "finetune.gguf"),
        llama_cpp.convert_adapter(folder / "lora", base, folder / "lora.gguf"),
    ):
        assert not done.failed, done.log
    with ExitStack() as servers:
        whole = servers.enter_context(serve_gguf(folder / "finetune.gguf", folder / "finetune.log"))
        lora = servers.enter_context(serve_gguf(folder / "base.gguf", folder / "lora.log", folder / "lora.gguf"))
        (other,) = servers.enter_context(serving(FakeEndpoint(name=MODEL, fault=serves(finetune))))
        yield {"finetune": whole, "lora": lora, "transformers": other.url}


@pytest.mark.parametrize(("other", "kind"), [("transformers", "same"), ("lora", "different")])
def test_a_finetune_beside_another_kind_of_server_and_beside_its_lora(
    addresses: dict[str, str], command: RunCommand, tmp_path: Path, other: str, kind: str
) -> None:
    a, b = (f"{MODEL}@{addresses[name]}" for name in ("finetune", other))
    done = command("endpoints", a, b, "--completions", "-o", tmp_path / "run", "--check", "--seed", 1)

    found = EndpointResults.load(tmp_path / "run")
    (test,) = found.endpoints.tests
    assert (found.verdict.kind.value, done.code) == (kind, 0 if kind == "same" else 3), found.verdict.sentences
    assert test.name.value == "first_token_logprobs"
