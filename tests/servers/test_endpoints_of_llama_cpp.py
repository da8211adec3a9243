"""`deltarank endpoints` between real servers of llama.cpp: equal weights, and a finetune beside its base."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from llama_cpp import LlamaCpp
from model_zoo import sharpen, write_family
from openai_server import MODEL, serve_gguf

from commands import RunCommand
from deltarank.results import EndpointResults

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def addresses(llama_cpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The base, the base once more, and the finetune."""
    folder = tmp_path_factory.mktemp("endpoints")
    family = write_family("llama", folder)
    models = {}
    for name, checkpoint in (("base", family.base), ("finetune", family.finetune)):
        sharpen(checkpoint)
        converted = llama_cpp.convert_model(checkpoint, folder / f"{name}.gguf")
        assert not converted.failed, converted.log
        models[name] = folder / f"{name}.gguf"
    with ExitStack() as servers:
        served = {"base": models["base"], "again": models["base"], "finetune": models["finetune"]}
        yield {name: servers.enter_context(serve_gguf(model, folder / f"{name}.log")) for name, model in served.items()}


@pytest.mark.parametrize("api", ["--completions", "--chat"])
@pytest.mark.parametrize(("other", "kind"), [("again", "same"), ("finetune", "different")])
def test_equal_weights_are_the_same_and_a_finetune_is_not(
    addresses: dict[str, str], command: RunCommand, tmp_path: Path, api: str, other: str, kind: str
) -> None:
    a, b = (f"{MODEL}@{addresses[name]}" for name in ("base", other))
    done = command("endpoints", a, b, api, "-o", tmp_path / "run", "--check", "--seed", 1)

    results = EndpointResults.load(tmp_path / "run")
    (test,) = results.endpoints.tests
    assert (results.verdict.kind.value, done.code) == (kind, 0 if kind == "same" else 3)
    assert test.name.value == "first_token_logprobs"
    assert max(test.control_aa, test.control_bb) < 1e-3
    assert "Both count the same tokens" in results.endpoints.template[0]
