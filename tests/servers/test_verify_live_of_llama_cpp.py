"""`deltarank verify --live` against the real llama.cpp: the base alone, with the adapter, and with another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from llama_cpp import LlamaCpp
from model_zoo import Family, sharpen, write_family
from openai_server import MODEL, serve_gguf

import deltarank
from commands import RunCommand

pytestmark = pytest.mark.servers


@dataclass(frozen=True)
class Running:
    """The models on disk, the adapter, and the addresses of the servers by what they should be found to apply."""

    family: Family
    adapter: Path
    addresses: dict[str, str]


@pytest.fixture(scope="module")
def running(llama_cpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The adapter holds the finetune `merged`; the other one holds the finetune `finetune`."""
    folder = tmp_path_factory.mktemp("live")
    family = write_family("llama", folder)
    for checkpoint in (family.base, family.finetune, family.merged):
        sharpen(checkpoint)
    base = folder / "base.gguf"
    assert not llama_cpp.convert_model(family.base, base).failed
    adapters = {"adapter": family.merged, "neither": family.finetune}
    with ExitStack() as servers:
        addresses = {"base": servers.enter_context(serve_gguf(base, folder / "base.log"))}
        for name, finetune in adapters.items():
            _extract(family.base, finetune, folder / name)
            converted = folder / f"{name}.gguf"
            assert not llama_cpp.convert_adapter(folder / name, family.base, converted).failed
            addresses[name] = servers.enter_context(serve_gguf(base, folder / f"{name}.log", converted))
        yield Running(family, folder / "adapter", addresses)


def _extract(base: Path, finetune: Path, adapter: Path) -> None:
    deltarank.extract(base, finetune, output=adapter, rank=8, server="llama.cpp")


@pytest.mark.parametrize("verdict", ["adapter", "base", "neither"])
def test_what_llama_cpp_applies(running: Running, command: RunCommand, verdict: str) -> None:
    family, reference = running.family, f"{MODEL}@{running.addresses[verdict]}"

    done = command("verify", family.base, family.merged, running.adapter, "--live", reference, "--json", "--check")

    found = json.loads(done.out)["live"]
    assert found["verdict"] == verdict, found
    assert done.code == (0 if verdict == "adapter" else 3)
    assert found["kld_apart"] > 0.002
    assert (found["kld_adapter"] < 0.002) == (verdict == "adapter")
    assert (found["kld_base"] < 0.002) == (verdict == "base")
