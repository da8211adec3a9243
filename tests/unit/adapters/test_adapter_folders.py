"""Which folder of an adapter is meant: the one that PEFT wrote, above it, or the file in it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltarank
from deltarank.errors import AdapterError
from peft_adapters import llama, train, write_base
from refusals import refused


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, and `run/chat`: PEFT saves an adapter with a name of its own in a folder of this name."""
    root = tmp_path_factory.mktemp("models")
    write_base(llama, root / "base")
    train(root / "base", root / "run" / "chat", r=4, target_modules=["q_proj"], layers_to_transform=[0])
    return root


def kept(models: Path, finetune: Path) -> tuple[int, str]:
    """How many matrices change, and what the results call the finetune."""
    results = deltarank.compare(models / "base", finetune, ranks=[4])
    return sum(matrix.frobenius > 0 for matrix in results.matrices), results.finetune.ref


@pytest.mark.parametrize(
    "given", ["run", "run/chat", "run/chat/adapter_model.safetensors", "run/chat/adapter_config.json"]
)
def test_an_adapter_is_found_by_the_folder_above_and_by_its_files(given: str, models: Path) -> None:
    changed, shown = kept(models, models / given)
    assert changed == 1
    assert Path(shown) == models / "run" / "chat"


def test_verify_finds_the_adapter_below_and_shows_its_path(models: Path) -> None:
    result = deltarank.verify(models / "base", models / "run" / "chat", models / "run")
    assert Path(result.adapter.ref) == models / "run" / "chat"


def test_several_adapters_below_are_listed(models: Path, tmp_path: Path) -> None:
    for step in (10, 20):
        shutil.copytree(models / "run" / "chat", tmp_path / f"checkpoint-{step}")
    with refused("several-folders", match=r"checkpoint-10.*checkpoint-20"):
        deltarank.compare(models / "base", tmp_path)


def test_an_adapter_and_weights_in_two_folders_below_are_listed(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "run" / "chat", tmp_path / "adapter")
    shutil.copytree(models / "base", tmp_path / "merged")
    with refused("several-folders", match=r"adapter.*merged"):
        deltarank.compare(models / "base", tmp_path)


def test_an_adapter_beside_weights_is_refused_and_each_may_be_named(models: Path, tmp_path: Path) -> None:
    """The weights are a copy of the base: read alone, they would say that nothing was changed."""
    both = shutil.copytree(models / "base", tmp_path / "both")
    shutil.copytree(models / "run" / "chat", both, dirs_exist_ok=True)
    with refused("adapter-beside-weights", AdapterError) as caught:
        deltarank.compare(models / "base", both)
    for name, changed in (("adapter_config.json", 1), ("model.safetensors", 0)):
        assert name in caught.value.cure
        if name != "model.safetensors":
            assert kept(models, both / name)[0] == changed
    results = deltarank.compare(both, models / "run" / "chat", ranks=[4])
    assert any("adapter_config.json" in note for note in results.notes)


def test_empty_factors_of_zero_3_are_named(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "run" / "chat", tmp_path / "empty")
    factors = load_file(folder / "adapter_model.safetensors")
    save_file({name: torch.empty(0) for name in factors}, folder / "adapter_model.safetensors")
    with refused("empty-tensors", match="ZeRO-3"):
        deltarank.compare(models / "base", folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"])
def test_a_git_lfs_pointer_in_an_adapter_is_named(name: str, models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "run" / "chat", tmp_path / "pointer")
    if name == "adapter_model.bin":
        (folder / "adapter_model.safetensors").unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345678\n")
    for finetune, adapter in ((folder, None), (models / "run" / "chat", folder)):
        with refused("lfs-pointer", match="Git LFS"):
            if adapter is None:
                deltarank.compare(models / "base", finetune)
            else:
                deltarank.verify(models / "base", finetune, adapter)


def test_an_adapter_in_the_hubs_cache_is_found_by_the_models_folder(models: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--org--lora"
    shutil.copytree(models / "run" / "chat", home / "snapshots" / ("a" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    assert kept(models, home)[0] == 1


def test_a_broken_configuration_is_no_pointer(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "run" / "chat", tmp_path / "broken")
    (folder / "adapter_config.json").write_text(json.dumps([]))
    with refused("adapter-bad-config"):
        deltarank.compare(models / "base", folder)
