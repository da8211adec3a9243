"""`extract BASE ADAPTER -r R`: a LoRA at a rank that a server accepts, and what that loses."""

import math
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import deltarank
import peft_adapters as made
from deltarank.cli import main
from tiny_architectures import SIZES, architecture

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "shrink-a-lora.md"
LARGE = architecture("llama", **SIZES | {"hidden_size": 192, "intermediate_size": 256})
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_base(LARGE, tmp_path_factory.mktemp("shrink") / "base")


def deltas(base: Path, adapter: Path) -> dict[str, Tensor]:
    """What PEFT adds to each matrix, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), adapter)
        model = model.double().merge_and_unload()
    before = load_file(base / "model.safetensors")
    return {name: weight - before[name].double() for name, weight in model.state_dict().items() if "_proj" in name}


@pytest.mark.parametrize(
    "config",
    [
        {"r": 64, "lora_alpha": 16},
        {"r": 64, "lora_alpha": 32, "use_rslora": True},
        {"r": 24, "rank_pattern": {"q_proj": 48, "up_proj": 8}, "alpha_pattern": {"down_proj": 40}},
    ],
)
def test_it_is_the_best_of_its_rank_and_states_what_it_loses(
    base: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    made.train(base, tmp_path / "adapter", target_modules=ALL, **config)
    found = deltarank.extract(base, tmp_path / "adapter", output=tmp_path / "small", rank=16, dtype="float32")
    whole, small = deltas(base, tmp_path / "adapter"), deltas(base, tmp_path / "small")
    changed = {name: delta for name, delta in whole.items() if float(delta.norm()) > 1e-9}
    lost = {name: float(torch.linalg.svdvals(delta)[16:].square().sum()) for name, delta in changed.items()}
    energy = math.fsum(float(delta.square().sum()) for delta in changed.values())

    assert len(changed) == 14
    assert 0.01 < sum(lost.values()) / energy < 0.9
    assert found.budget.truncated == pytest.approx(sum(lost.values()) / energy, rel=1e-4)
    for name, delta in changed.items():
        assert float((delta - small[name]).square().sum()) == pytest.approx(lost[name], rel=1e-3, abs=1e-9 * energy)


def test_a_rank_that_is_enough_loses_nothing(base: Path, tmp_path: Path) -> None:
    """A LoRA of rank 24, which no server loads as such, at rank 32."""
    made.train(base, tmp_path / "adapter", target_modules=["q_proj"], r=24)
    deltarank.extract(base, tmp_path / "adapter", output=tmp_path / "padded", rank=32, dtype="float32")
    whole, padded = deltas(base, tmp_path / "adapter"), deltas(base, tmp_path / "padded")

    for name, delta in whole.items():
        assert torch.allclose(delta, padded[name], atol=1e-7)


def test_the_page_as_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "base").symlink_to(base)
    made.train(base, tmp_path / "adapter", target_modules=ALL, r=64)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("deltarank ")]
    assert len(lines) >= 3
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line

    assert "within 0.01 % of optimal" in " ".join(capsys.readouterr().out.split())
