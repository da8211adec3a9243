"""The commands and snippets of pages, run as they are written, on tiny models with the names that the pages use."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltarank
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.results import run_name
from doc_blocks import run_blocks
from tiny_architectures import architecture

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
WEIGHTS = [
    "library.md",
    "schemas.md",
    "how-to/which-base.md",
    "how-to/big-models-small-disks.md",
    "how-to/fleet.md",
]
OUTPUTS = ["extraction.md", "outputs.md", "how-to/better-adapters.md", "how-to/blind-test.md"]


def write_model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    architecture("llama", **SIZES, **TOKENS, max_position_embeddings=512)().save_pretrained(folder)
    tokenizer(Recipe()).save_pretrained(folder)
    return folder


def write_finetune(base: Path, folder: Path, seed: int) -> Path:
    shutil.copytree(base, folder)
    torch.manual_seed(seed)
    before = load_file(base / "model.safetensors")
    weights = {name: w + 0.1 * w.std() * torch.randn_like(w) for name, w in before.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the pages name as if they were on the Hub."""
    home = tmp_path_factory.mktemp("docs")
    base = write_model(home / "org" / "base", 0)
    write_model(home / "org" / "base-v1", 1)
    finetune = write_finetune(base, home / "org" / "finetune", 2)
    write_finetune(base, home / "org" / "instruct", 3)
    for name, model in {"base-v2": base, "base-70b": base, "finetune-70b": finetune}.items():
        (home / "org" / name).symlink_to(model)
    deltarank.extract(base, finetune, output=home / "my-lora", rank=8)
    deltarank.compare(base, finetune, output=home / "runs" / "full", ranks=[8])
    lab = {"base": base, "full": finetune, "other": home / "org" / "instruct", "adapter": home / "my-lora"}
    (home / "deltarank-demo" / "lab").mkdir(parents=True)
    for name, model in {**lab, "merge": finetune, "lora": finetune}.items():
        (home / "deltarank-demo" / "lab" / name).symlink_to(model)
    (home / "prompts.txt").write_text("".join(f"the rain, {count} days\n" for count in range(8)))
    (home / "finetunes.txt").write_text("org/finetune\norg/instruct\n")
    return home


@pytest.fixture
def there(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawing: None) -> Path:
    monkeypatch.chdir(shutil.copytree(models, tmp_path / "there", symlinks=True))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Path.cwd()


@pytest.mark.parametrize("page", WEIGHTS)
def test_a_page_as_it_is_written(page: str, there: Path) -> None:
    assert run_blocks(f"docs/{page}") > 0


@pytest.mark.parametrize("page", OUTPUTS)
def test_a_page_that_runs_models(page: str, there: Path) -> None:
    """The pages add to runs that have few outputs, with the same settings: whole runs take minutes."""
    few = {"ranks": [8], "prompts": there / "prompts.txt", "max_tokens": 8}
    if page == "outputs.md":
        deltarank.outputs("org/base", "org/finetune", output="runs/mine", **few)
    if page == "extraction.md":
        deltarank.outputs("org/base", "org/finetune", output=Path("runs", run_name("org/finetune")), **few)
    if page == "how-to/blind-test.md":
        deltarank.outputs("org/base", "org/finetune", output="runs/mine", **few | {"max_tokens": 200})
    assert run_blocks(f"docs/{page}") > 0


def test_the_dry_run_of_endpoints_sends_nothing(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their hosts do not exist."""
    assert run_blocks("docs/how-to/what-is-my-host-serving.md") == 1
    assert "requests" in capsys.readouterr().out
