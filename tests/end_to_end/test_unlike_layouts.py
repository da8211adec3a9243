"""A Phi-3 base, whose projections are fused, and its finetune in Llama's layout: figures, adapter and outputs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from deltarank import compare, extract, verify
from deltarank.results import FitKind
from tiny_architectures import DENSE, SIZES, logits, write_pair

RANK = 8


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base, finetune, and the finetune with its projections split."""
    folder = tmp_path_factory.mktemp("phi")
    base, finetune = write_pair(DENSE["phi3"], folder)
    split = {}
    for name, tensor in load_file(finetune / "model.safetensors").items():
        if "qkv_proj" in name:
            q, k, v = tensor.split([32, 16, 16])
            split |= {name.replace("qkv", x): part.contiguous() for x, part in zip("qkv", (q, k, v), strict=True)}
        elif "gate_up_proj" in name:
            parts = zip(("gate", "up"), tensor.chunk(2), strict=True)
            split |= {name.replace("gate_up", x): part.contiguous() for x, part in parts}
        else:
            split[name] = tensor
    (folder / "split").mkdir()
    save_file(split, folder / "split" / "model.safetensors", metadata={"format": "pt"})
    config = AutoConfig.for_model("llama", **SIZES).to_dict() | {"architectures": ["LlamaForCausalLM"]}
    (folder / "split" / "config.json").write_text(json.dumps(config, default=str))
    return base, finetune, folder / "split"


def kept(before: Path, after: Path, matrices: tuple[str, ...]) -> float:
    """The energy that the best approximations of rank 8 keep, by a full SVD in float64."""
    one, other = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    names = [name for name in one if any(f"{each}.weight" in name for each in matrices)]
    energies = [torch.linalg.svdvals(other[name].double() - one[name].double()).square() for name in names]
    return float(sum(each[:RANK].sum() for each in energies) / sum(each.sum() for each in energies))


def test_figures_are_those_of_the_fused_matrices(pair: tuple[Path, Path, Path]) -> None:
    base, finetune, split = pair
    expected = kept(base, finetune, ("qkv_proj", "gate_up_proj", "o_proj", "down_proj"))
    results = [compare(base, each, ranks=(RANK,), solver="exact") for each in (finetune, split)]

    for each in results:
        assert each.totals.whole.loss(RANK).energy_kept == pytest.approx(expected, abs=1e-6)
        assert not each.unpaired.matrices
    assert results[0].verdict.kind is results[1].verdict.kind


def test_the_adapter_is_that_of_the_fused_base(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, finetune, split = pair
    extract(base, split, output=tmp_path / "adapter", rank=32, server="peft")

    assert (logits(base, tmp_path / "adapter") - logits(finetune)).abs().max() < 1e-4
    assert verify(base, split, tmp_path / "adapter").kind is FitKind.OPTIMAL
