"""Quantised checkpoints as tools write them, from headers made by hand: each is refused by name, with its own cure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from files import llama, pairing, save
from quantised import NAME, decoded
from torch import Tensor

from deltarank.checkpoints import open_checkpoint
from deltarank.errors import DeltarankError
from refusals import refused

STEM = NAME.removesuffix(".weight")

Parts = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

I8, U8, I16, I32 = torch.int8, torch.uint8, torch.int16, torch.int32
F16, F32, BF16, F8 = torch.float16, torch.float32, torch.bfloat16, torch.float8_e4m3fn

OTHERS: dict[str, tuple[Mapping[str, Any], Parts, str]] = {
    "HQQ": ({"quant_method": "hqq"}, {"W_q": (U8, (64, 64)), "scale": (BF16, (1, 128)), "zero": (BF16, (1, 9))}, "hqq"),
    "HQQ viewed as floats": ({"quant_method": "hqq"}, {"W_q": (BF16, (64, 32)), "scale": (BF16, (1, 128))}, "hqq"),
    "AQLM": ({"quant_method": "aqlm"}, {"codes": (I16, (64, 8, 1)), "codebooks": (F16, (1, 65536, 1, 8))}, "aqlm"),
    "VPTQ": ({"quant_method": "vptq"}, {"indices": (I32, (1, 64, 16)), "centroids.weight": (F16, (1, 512))}, "vptq"),
    "EETQ": ({"quant_method": "eetq"}, {"weight": (I8, (64, 64)), "weight_scales": (F16, (64,))}, "eetq"),
    "quanto": ({"quant_method": "quanto"}, {"weight._data": (I8, (64, 64)), "weight._scale": (F16, (64, 1))}, "quanto"),
    "BitNet": ({"quant_method": "bitnet"}, {"weight": (U8, (16, 64)), "weight_scale": (BF16, (1,))}, "bitnet"),
    "ExLlama 2": ({"quant_method": "exl2"}, {"q_weight": (I32, (8, 64)), "q_scale": (I32, (2, 8))}, "exl2"),
    "ExLlama 3": ({"quant_method": "exl3"}, {"trellis": (I16, (4, 4, 64)), "suh": (F16, (64,))}, "exl3"),
    "torchao": ({"quant_method": "torchao"}, {"weight_qdata": (I8, (64, 64)), "weight_scale": (F32, (64,))}, "torchao"),
    "GPTQ without bits": (
        {}, {"qweight": (I32, (8, 64)), "qzeros": (I32, (1, 8)), "scales": (F16, (1, 64))}, "how many bits",
    ),
    "GPTQ as Marlin": (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        {"B": (I32, (4, 128)), "s": (F16, (1, 64)), "workspace": (I32, (16,))}, "no matrix of the finetune is",
    ),
    "GPTQ as BitBLAS": (
        {"quant_method": "gptq", "bits": 4, "format": "bitblas"},
        {"qweight": (I8, (64, 32)), "qzeros": (I8, (1, 32)), "scales": (F16, (64, 1))}, "`bitblas` is not supported",
    ),
    "AWQ for GEMV": (
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"qweight": (I32, (64, 8)), "qzeros": (I32, (64, 1)), "scales": (F16, (64, 8))}, "`gemv` is not supported",
    ),
    "compressed-tensors, sparse": (
        {"quant_method": "compressed-tensors"},
        {"weight.compressed": (BF16, (1, 99)), "weight.bitmask": (U8, (64, 8))}, "no matrix of the finetune is",
    ),
    "compressed-tensors, Marlin 2:4": (
        {"quant_method": "compressed-tensors"},
        {"weight_packed": (I32, (2, 128)), "scale_packed": (F16, (1, 64)), "meta": (I16, (4, 64))}, "do not match",
    ),
    "FP8 with scales of another name": (
        {"quant_method": "fp8"}, {"weight": (F8, (64, 64)), "weight_block_scales": (F32, (1, 1))}, "that is not known",
    ),
}  # fmt: skip


@pytest.mark.parametrize("tool", OTHERS)
def test_what_is_not_decoded_is_refused_by_name(tool: str, tmp_path: Path) -> None:
    config, parts, said = OTHERS[tool]
    stored = {f"{STEM}.{part}": torch.zeros(shape).to(dtype) for part, (dtype, shape) in parts.items()}
    norms = {name: tensor for name, tensor in llama(hidden=64).items() if tensor.ndim == 1}
    tuned = save(tmp_path / "tuned", norms | stored, config={"quantization_config": dict(config)})

    with pytest.raises(DeltarankError, match=said) as caught:
        pairing(save(tmp_path / "base", llama(hidden=64)), tuned)

    assert caught.value.slug in ("quantised-format", "not-floating")
    assert caught.value.cure.startswith("Give")
    assert "float16" in caught.value.cure


@pytest.mark.parametrize("scale", ["qscale_weight", "scale_weight", "weight_scale", "weight_scale_inv"])
def test_the_scale_of_an_fp8_matrix_counts_under_every_name(tmp_path: Path, scale: str) -> None:
    codes = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(F8)
    stored = {NAME: codes, f"{STEM}.{scale}": torch.tensor(0.25), f"{STEM}.qscale_act": torch.tensor(3.0)}

    assert torch.equal(decoded(tmp_path, stored, {"quant_method": "fp8"}), codes.float() * 0.25)


def test_scales_of_activations_are_not_those_of_a_weight(tmp_path: Path) -> None:
    codes = torch.ones(64, 64).to(F8)
    names = ("input_scale", "activation_scale", "qscale_act", "input_scale_ub", "k_scale", "scale_input")
    stored: dict[str, Tensor] = {NAME: codes} | {f"{STEM}.{name}": torch.tensor(3.0) for name in names}

    assert torch.equal(decoded(tmp_path, stored, {"quant_method": "fp8"}), torch.ones(64, 64))


def test_a_model_that_keeps_its_plain_weights_is_read_whatever_its_config_says(tmp_path: Path) -> None:
    """Masks are stored as integers, and a configuration may outlive the quantisation that it tells of."""
    masked = {**llama(), "model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    folder = save(tmp_path, masked, config={"quantization_config": {"quant_method": "hqq"}})

    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors.keys() == masked.keys()


def test_a_quantised_base_is_named_as_the_base(tmp_path: Path) -> None:
    stored = {f"{STEM}.qweight": torch.zeros(8, 64, dtype=I32), f"{STEM}.scales": torch.zeros(1, 64, dtype=F16)}
    base = save(tmp_path / "base", stored, config={"quantization_config": {"quant_method": "gptq", "bits": 4}})

    with refused("quantised-format", match="1 tensor of the base cannot be decoded"):
        pairing(base, save(tmp_path / "tuned", llama(hidden=64)))
