"""The commands for llama.cpp on the page "Extract, verify, serve", run by its real converters and server."""

import re
import shlex
import warnings
from pathlib import Path

import pytest
from llama_cpp import LlamaCpp, differ_by
from model_zoo import prompts, write_family
from transformers_reference import log_probabilities

from commands import RunCommand
from deltarank.servers import get_server

pytestmark = pytest.mark.servers

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "extract-verify-serve.md"
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
PROMPTS = list(prompts())


def words_after(start: str) -> list[str]:
    """The words of the page's only command that begins so."""
    (line,) = [line for line in LINES if line.startswith(start)]
    return shlex.split(line)[len(shlex.split(start)) :]


def test_the_adapter_of_the_page_in_llama_cpp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand, llama_cpp: LlamaCpp
) -> None:
    """As the converters choose by default, in bfloat16: the server's own error is 0.03, the adapter's effect 2.6."""
    monkeypatch.chdir(tmp_path)
    family = write_family("llama", tmp_path)
    assert command("extract", *words_after("deltarank extract")).code == 0

    for script in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        converted = llama_cpp.run_converter(script, words_after(f"python llama.cpp/{script}"), tmp_path)
        assert not converted.failed, converted.log
    served = llama_cpp.run_server(words_after("llama-server"), tmp_path, PROMPTS, family.vocabulary)
    alone = llama_cpp.run_server(["-m", "base.gguf"], tmp_path, PROMPTS, family.vocabulary)

    base, expected = log_probabilities(family.base, PROMPTS), log_probabilities(family.base, PROMPTS, Path("adapter"))
    assert differ_by(served.value, expected) < 5 * differ_by(alone.value, base) + 1e-5
    assert differ_by(expected, base) > 20 * differ_by(served.value, expected)


def test_the_command_for_peft_that_model_cards_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: RunCommand
) -> None:
    monkeypatch.chdir(tmp_path)
    write_family("llama", tmp_path)
    assert command("extract", "base", "finetune", "-r", 8, "-o", "adapter", "-q").code == 0
    python, option, program = shlex.split(get_server("peft").serve_command.format(base="base", adapter="adapter"))
    assert (python, option) == ("python", "-c")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about transformers
        exec(program, {})
