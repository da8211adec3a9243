"""`deltarank extract --server`: what each server needs, and what it cannot load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from commands import RunCommand
from tiny_architectures import DENSE, EXPERTS, architecture, logits, write_pair

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(DENSE["gpt2"], tmp_path_factory.mktemp("gpt2"))


def factors(adapter: Path) -> dict[str, torch.Tensor]:
    """The factors B of layer 0, by the name of the module."""
    found = load_file(adapter / "adapter_model.safetensors")
    return {key.split(".")[-3]: value for key, value in found.items() if ".0." in key and "lora_B" in key}


@pytest.mark.parametrize(("rank", "slot"), [(2, 8), (12, 16), (24, 32)])
def test_any_rank_is_extracted_for_vllm_and_the_slot_rounded_up(
    llama: Pair, command: RunCommand, tmp_path: Path, rank: int, slot: int
) -> None:
    done = command("extract", *llama, "-r", rank, "--server", "vllm", "-o", tmp_path / "adapter", "-q")

    assert done.code == 0, done.err
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == rank
    assert f"--max-lora-rank {slot} " in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize(
    ("included", "names"),
    [
        (["q_proj"], {"q_proj", "k_proj", "v_proj"}),
        (["q_proj", "k_proj"], {"q_proj", "k_proj", "v_proj"}),
        (["layers.0*k_proj", "layers.1*v_proj"], {"q_proj", "k_proj", "v_proj"}),
        (["up_proj"], {"gate_proj", "up_proj"}),
        (["o_proj", "down_proj"], {"o_proj", "down_proj"}),
    ],
)
def test_modules_that_sglang_fuses_are_complete(
    llama: Pair, command: RunCommand, tmp_path: Path, included: list[str], names: set[str]
) -> None:
    """In a portable adapter too. vLLM's has what was asked for and no more."""
    chosen = [word for each in included for word in ("--include", f"*{each}*")]
    for server in ("portable", "sglang", "vllm"):
        done = command("extract", *llama, "-r", 8, "-o", tmp_path / server, "-q", "--server", server, *chosen)
        assert done.code == 0, done.err

    bare, truth = factors(tmp_path / "vllm"), logits(llama[0], tmp_path / "vllm")
    for server in ("portable", "sglang"):
        found = factors(tmp_path / server)
        assert set(found) == names
        assert all(not found[name].any() for name in names - set(bare))
        assert torch.equal(logits(llama[0], tmp_path / server), truth)


def test_unchanged_partners_get_zeros(command: RunCommand, tmp_path: Path) -> None:
    """A finetune of v_proj alone: q and k have a place in the file, although nothing changed there."""
    base, tuned = write_pair(DENSE["llama"], tmp_path)
    weights, changed = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    mixed = {name: changed[name] if "v_proj" in name else weight for name, weight in weights.items()}
    write_weights(tuned, mixed)

    done = command("extract", base, tuned, "-r", 8, "-o", tmp_path / "adapter", "-q")

    assert done.code == 0, done.err
    found = factors(tmp_path / "adapter")
    assert set(found) == {"q_proj", "k_proj", "v_proj"}
    assert [name for name in found if found[name].any()] == ["v_proj"]


def write_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("server", ["portable", "vllm", "vllm-0.31", "llama.cpp"])
def test_a_model_without_loras_is_refused_with_the_servers_that_load_them(
    gpt2: Pair, command: RunCommand, tmp_path: Path, server: str
) -> None:
    done = command("extract", *gpt2, "-r", 8, "--server", server, "-o", tmp_path / "adapter")

    assert done.code == 1
    assert "no LoRA on models of the type `gpt2`" in done.err
    assert "--server peft" in done.err
    assert ("no portable adapter" in done.err) == (server == "portable")
    assert not (tmp_path / "adapter").exists()


def test_modules_that_not_every_server_knows_are_left_out_of_a_portable_adapter(
    command: RunCommand, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    pair = write_pair(architecture("phi", **sizes, num_attention_heads=4), tmp_path)

    done = command("extract", *pair, "-r", 8, "-o", tmp_path / "adapter", "--json", "-q")
    assert done.code == 0, done.err

    left_out = {tensor["name"]: tensor["reason"] for tensor in json.loads(done.out)["budget"]["tensors"]}
    assert "modules of the name fc1" in left_out["model.layers.0.mlp.fc1.weight"]
    assert set(factors(tmp_path / "adapter")) == {"q_proj", "k_proj", "v_proj"}


def test_llama_cpp_gets_experts(command: RunCommand, tmp_path: Path) -> None:
    pair = write_pair(EXPERTS["mixtral"], tmp_path)

    done = command("extract", *pair, "-r", 8, "--server", "llama.cpp", "-o", tmp_path / "adapter", "-q")

    assert done.code == 0, done.err
    assert {"w1", "w2", "w3", "q_proj"} <= set(factors(tmp_path / "adapter"))


def test_verify_says_how_the_rules_are_known(llama: Pair, command: RunCommand, tmp_path: Path) -> None:
    assert command("extract", *llama, "-r", 8, "-o", tmp_path / "adapter", "-q").code == 0

    for server, words in (("vllm", "by running it (2026-11-29)"), ("lorax", "only read from its source")):
        done = command("verify", *llama, tmp_path / "adapter", "--server", server)
        assert words in " ".join(done.err.split())
