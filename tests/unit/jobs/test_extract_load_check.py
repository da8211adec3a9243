"""After an adapter is written, PEFT loads it into the base's class; what does not load is not kept."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltarank
from deltarank.architectures import Architecture, UnknownClass, find_architecture
from deltarank.checkpoints import open_checkpoint
from deltarank.errors import JobError
from deltarank.jobs.extract.load_check import check_written
from deltarank.jobs.extract.staging import StagingFolder
from deltarank.servers import get_server
from refusals import refused
from tiny_architectures import DENSE, write_pair


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("models")
    base, finetune = write_pair(DENSE["llama"], home)
    deltarank.extract(base, finetune, rank=8, output=home / "a")
    return base, home / "a"


def architecture(base: Path) -> Architecture | UnknownClass:
    with open_checkpoint(base) as checkpoint:
        return find_architecture(checkpoint)


def renamed(adapter: Path, copy: Path, old: str, new: str) -> Path:
    """A copy with other keys."""
    copy.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({key.replace(old, new): w for key, w in tensors.items()}, copy / "adapter_model.safetensors")
    (copy / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    return copy


def test_an_adapter_that_loads_is_reported_so(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    check = check_written(adapter, architecture(base), get_server("portable"))

    assert (check.checked, check.loads, check.model_class, check.reason) == (True, True, "LlamaForCausalLM", None)
    assert "loads all of it into LlamaForCausalLM" in check.sentence


def test_keys_that_peft_ignores_fail_the_check_for_peft(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    dead = renamed(adapter, tmp_path / "dead", "layers.1.self_attn", "layers.1.attention")

    with refused("adapter-does-not-load", JobError, match="layers.1.attention"):
        check_written(dead, architecture(base), get_server("peft"))


def test_for_other_servers_the_result_says_what_peft_does_not_load(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    dead = renamed(adapter, tmp_path / "dead", "layers.1.self_attn", "layers.1.attention")
    check = check_written(dead, architecture(base), get_server("vllm"))

    assert check.checked
    assert check.loads is False
    assert check.reason is not None
    assert "layers.1.attention" in check.reason


def test_a_configuration_that_peft_refuses_fails_the_check(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = folders
    dead = renamed(adapter, tmp_path / "dead", "", "")
    config = json.loads((dead / "adapter_config.json").read_text()) | {"target_modules": ["no_such_module"]}
    (dead / "adapter_config.json").write_text(json.dumps(config))

    with refused("adapter-does-not-load", JobError, match="no_such_module"):
        check_written(dead, architecture(base), get_server("peft"))


def test_weights_that_are_not_those_of_config_json_have_no_class(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = folders
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(99)
    (tmp_path / "other").mkdir()
    save_file(weights, tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "config.json").write_text((base / "config.json").read_text())
    found = architecture(tmp_path / "other")

    assert isinstance(found, UnknownClass)
    assert "'model.norm.weight' is 99 in the files and 32 in LlamaForCausalLM" in found.reason


def write_and_fail(staging: StagingFolder) -> None:
    with staging.whole() as folder:
        (folder / "adapter_config.json").write_text("{}")
        raise JobError("It does not load.", cure="None.", slug="adapter-does-not-load")


def test_what_fails_while_it_is_written_leaves_nothing_that_looks_like_an_adapter(tmp_path: Path) -> None:
    with StagingFolder(tmp_path / "a", {}) as staging:
        staging.open(force=False)
        with refused("adapter-does-not-load", JobError):
            write_and_fail(staging)

    assert not (tmp_path / "a").exists()
    assert not list(tmp_path.rglob("adapter_config.json"))
