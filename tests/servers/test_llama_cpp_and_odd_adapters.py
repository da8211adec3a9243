"""Adapters with a mistake in the real llama.cpp, beside what `verify --server llama.cpp` says of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from as_served import write_as_served
from llama_cpp import Answer, differ_by
from odd_adapters import CONV1D, ODD, write_odd
from served_family import PROMPTS, Served, ServedFamily
from torch import Tensor
from transformers_reference import log_probabilities

from commands import RunCommand
from deltarank.errors import AdapterError

pytestmark = pytest.mark.servers

NOT_READ = ("adapter-unsupported", "adapter-not-lora")
"""Slugs of errors that say what deltarank does not read, and nothing about llama.cpp."""

NOT_NUMBERS = "NaN"

Plain = Callable[[str], Path]


@pytest.fixture(scope="module")
def plain(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """An adapter by `extract`, of rank 8, for a model of the zoo."""
    from deltarank import extract

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            family = served(name).family
            server = "peft" if name == CONV1D else "portable"
            include = ("*.c_*.weight",) if name == CONV1D else ()
            folder = tmp_path_factory.mktemp("plain") / "adapter"
            extract(family.base, family.finetune, output=folder, rank=8, server=server, include=include)
            made[name] = folder
        return made[name]

    return get


@dataclass(frozen=True)
class Word:
    """What deltarank says that llama.cpp does: an error, or the log-probabilities of the model that it makes."""

    error: AdapterError | None
    values: Tensor | None


def word_on(model: ServedFamily, adapter: Path, folder: Path) -> Word:
    family = model.family
    try:
        as_served = write_as_served(family.base, family.finetune, adapter, "llama.cpp", folder)
    except AdapterError as error:
        return Word(error, None)
    return Word(None, log_probabilities(as_served, PROMPTS))


@pytest.fixture
def results(served: Served, plain: Plain, tmp_path: Path) -> Callable[[str], tuple[ServedFamily, Answer, Word]]:
    def get(name: str) -> tuple[ServedFamily, Answer, Word]:
        model = served(ODD[name].model)
        odd = write_odd(name, plain(ODD[name].model), tmp_path / "odd")
        return model, model.predict(odd), word_on(model, odd, tmp_path / "served")

    return get


Results = Callable[[str], tuple[ServedFamily, Answer, Word]]


@pytest.mark.parametrize("name", [name for name in ODD if name != NOT_NUMBERS])
def test_verify_says_what_llama_cpp_does(results: Results, name: str) -> None:
    model, answer, word = results(name)

    if word.error is not None and word.error.slug in NOT_READ:
        return
    assert answer.failed == (word.error is not None), answer.log
    if word.error is not None:
        assert word.error.slug == "adapter-refused"
        assert answer.aborted == ("llama.cpp aborts" in word.error.message)
    else:
        assert word.values is not None
        assert differ_by(answer.value, word.values) < model.tolerance


def test_an_adapter_with_nan_spoils_every_prediction(results: Results) -> None:
    _, answer, word = results(NOT_NUMBERS)

    assert word.values is not None
    assert bool(word.values.isnan().all())
    assert bool(answer.value.isnan().all())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("embedding LoRA, tied", "aborts when it loads this adapter"),
        ("keys with .default.", "its keys hold the name of an adapter"),
        ("B missing", "a factor is missing"),
        ("stray tensor", "`model.stray`"),
        ("Conv1D", "models of the type 'gpt2'"),
    ],
)
def test_the_message_names_the_reason(
    served: Served, plain: Plain, command: RunCommand, tmp_path: Path, name: str, words: str
) -> None:
    family = served(ODD[name].model).family
    odd = write_odd(name, plain(ODD[name].model), tmp_path / "odd")

    done = command("verify", family.base, family.finetune, odd, "--server", "llama.cpp")

    assert done.code == 1
    assert words in " ".join(done.err.split())
