"""The base that a model card or adapter_config.json names, beside the base that was given."""

from pathlib import Path

import pytest
from tiny_checkpoints import base_weights, full_finetune, write

import deltarank
import peft_adapters as made

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(home: Path, repo: str, seed: int = 0) -> Path:
    """A model as the Hub's cache stores it."""
    return write(home / f"models--{repo.replace('/', '--')}" / "snapshots" / COMMIT, base_weights(seed))


@pytest.fixture
def finetune(tmp_path: Path) -> Path:
    return write(tmp_path / "finetune", full_finetune(base_weights()))


def note(base: Path, finetune: Path, front_matter: str) -> str:
    (finetune / "README.md").write_text(f"---\n{front_matter}\n---\n# A model\n")
    notes = [each for each in deltarank.compare(base, finetune, ranks=[4]).notes if "as the base model" in each]
    return "\n".join(notes)


def test_another_model_is_noted(tmp_path: Path, finetune: Path) -> None:
    base = cached(tmp_path, "org/small")

    assert note(base, finetune, "base_model: other/large") == (
        f"the model card of `{finetune}` names `other/large` as the base model, and the base given is `org/small`: "
        "check that it is the right one"
    )
    assert "names `a/one` and `b/two` as the base models" in note(base, finetune, "base_model:\n- a/one\n- b/two")


@pytest.mark.parametrize(
    "front_matter",
    [
        "base_model: org/small",
        "base_model: mirror/Small",
        "base_model:\n- other/large\n- org/small",
        "base_model: unsloth/small-bnb-4bit",
        "base_model: TheBloke/Small-GPTQ",
        "base_model: org/small-GGUF",
        "base_model: ./checkpoints/large",
        "base_model: /home/me/large",
        "base_model: large",
        "base_model: 7",
        "base_model: [unclosed",
        "license: mit",
    ],
)
def test_copies_paths_and_what_cannot_be_read_are_not_noted(tmp_path: Path, finetune: Path, front_matter: str) -> None:
    assert note(cached(tmp_path, "org/small"), finetune, front_matter) == ""


def test_of_a_base_in_a_folder_nothing_is_known(tmp_path: Path, finetune: Path) -> None:
    assert note(write(tmp_path / "small", base_weights()), finetune, "base_model: other/large") == ""


def test_the_base_of_an_adapter_is_compared(tmp_path: Path, finetune: Path) -> None:
    base = cached(tmp_path, "org/small")
    factors = made.best_factors(base, finetune, 2)
    words = "names `other/large` as the base model, and the base given is `org/small`"
    settings = {"r": 2, "lora_alpha": 2, "target_modules": ["up_proj", "down_proj", "q_proj", "o_proj"]}
    for named, is_noted in (("other/large", True), ("org/small", False)):
        adapter = tmp_path / named.replace("/", "-")
        made.write_adapter(adapter, factors, **settings, base_model_name_or_path=named)

        assert any(words in each for each in deltarank.verify(base, finetune, adapter).notes) is is_noted
        assert any(words in each for each in deltarank.compare(base, adapter, ranks=[2]).notes) is is_noted


def test_which_base_says_what_the_card_names(tmp_path: Path, finetune: Path) -> None:
    (finetune / "README.md").write_text("---\nbase_model: org/small\n---\n")
    candidates = [cached(tmp_path, "org/small"), cached(tmp_path, "org/other", seed=5)]

    assert deltarank.which_base(finetune, candidates).sentence.endswith(
        " Its model card names `org/small` as its base, too."
    )
    (finetune / "README.md").write_text("---\nbase_model: org/large\n---\n")
    assert deltarank.which_base(finetune, candidates).sentence.endswith(
        " Its model card names `org/large` as its base."
    )
