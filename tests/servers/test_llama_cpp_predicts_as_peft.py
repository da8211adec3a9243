"""An extracted adapter in the real llama.cpp, beside the same adapter in transformers and PEFT."""

from pathlib import Path

import pytest
from llama_cpp import differ_by
from model_zoo import ZOO
from served_family import Served

from commands import RunCommand

pytestmark = pytest.mark.servers

EXACT = [name for name in ZOO if name != "gpt2"]
OWN_HEAD = [name for name in EXACT if ZOO[name].has_own_head]
EXPERTS = [name for name in EXACT if ZOO[name].has_experts]


def check(
    served: Served, command: RunCommand, name: str, adapter: Path, *words: object, part: str = "finetune"
) -> None:
    """Extracts an adapter and compares the log-probabilities of all tokens."""
    model = served(name)
    finetune = model.family.finetune if part == "finetune" else model.family.merged
    done = command("extract", model.family.base, finetune, "-o", adapter, "-q", *words)
    assert done.code == 0, done.err

    answer, expected = model.predict(adapter), model.expect(adapter)

    assert not answer.failed, answer.log
    assert differ_by(answer.value, expected) < model.tolerance
    assert differ_by(expected, model.reference) > 0.5


@pytest.mark.parametrize("rank", [8, 64])
@pytest.mark.parametrize("name", EXACT)
def test_a_portable_adapter(served: Served, command: RunCommand, tmp_path: Path, name: str, rank: int) -> None:
    check(served, command, name, tmp_path / "adapter", "-r", rank)


@pytest.mark.parametrize("name", EXACT)
def test_a_merged_lora(served: Served, command: RunCommand, tmp_path: Path, name: str) -> None:
    check(served, command, name, tmp_path / "adapter", "-r", 8, part="merged")


@pytest.mark.parametrize("name", EXPERTS)
def test_experts(served: Served, command: RunCommand, tmp_path: Path, name: str) -> None:
    check(served, command, name, tmp_path / "adapter", "-r", 8, "--server", "llama.cpp")


@pytest.mark.parametrize("name", OWN_HEAD)
def test_an_untied_output_head(served: Served, command: RunCommand, tmp_path: Path, name: str) -> None:
    words = ("--server", "vllm", "--include", "lm_head.weight", "--include", "*proj.weight")
    check(served, command, name, tmp_path / "adapter", "-r", 8, *words)
