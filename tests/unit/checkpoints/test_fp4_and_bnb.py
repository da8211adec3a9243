"""FP4 in blocks (NVFP4, MXFP4, gpt-oss) and bitsandbytes: as their own libraries decode what they wrote."""

import warnings
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from files import numbers, read, save
from quantised import NAME, decoded, relative_error, stated_error, weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import deltarank
from deltarank.checkpoints import open_checkpoint, pair_checkpoints

STEM = NAME.removesuffix(".weight")
CT = {"quant_method": "compressed-tensors"}


def fp4(weight: Tensor, *, nv: bool) -> tuple[dict[str, Tensor], Tensor]:
    """What compressed-tensors stores of a weight, and what it reads again (in bfloat16)."""
    group = 16 if nv else 32
    args = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group" if nv else "group", group_size=group, symmetric=True
    )
    form = "nvfp4-pack-quantized" if nv else "mxfp4-pack-quantized"
    how = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    largest = weight.view(weight.shape[0], -1, group).abs().amax(-1)
    stored: dict[str, Tensor] = {"weight": weight}
    if nv:
        whole = 448 * 6 / weight.abs().max()
        stored["weight_scale"] = (largest / 6 * whole).to(torch.float8_e4m3fn).to(torch.float32)
        stored["weight_global_scale"] = whole.view(1)
    else:
        stored["weight_scale"] = torch.exp2(torch.floor(torch.log2(largest)) - 2)
    library = BaseCompressor.get_value_from_registry(form)
    packed = library.compress(stored, how)
    return {f"{STEM}.{part}": tensor for part, tensor in packed.items()}, library.decompress(dict(packed), how)[
        "weight"
    ]


@pytest.mark.parametrize("nv", [True, False])
def test_fp4_of_compressed_tensors(tmp_path: Path, nv: bool) -> None:
    """The library works in bfloat16: ours is the exact product, its is that rounded once or twice."""
    true = weights(75, 192)
    stored, plain = fp4(true, nv=nv)

    found = decoded(tmp_path, stored, CT, entries=2000)

    assert plain.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain.float(), rtol=2**-7, atol=0)
    assert relative_error(found, true) == pytest.approx(stated_error(tmp_path / "base"), rel=0.1)


def test_nvfp4_of_modelopt_multiplies(tmp_path: Path) -> None:
    stored, _ = fp4(weights(40, 64), nv=True)
    same = {
        NAME: stored[f"{STEM}.weight_packed"],
        f"{NAME}_scale": stored[f"{STEM}.weight_scale"],
        f"{NAME}_scale_2": 1 / stored[f"{STEM}.weight_global_scale"].squeeze(),
    }

    one = decoded(tmp_path / "one", stored, CT)
    other = decoded(tmp_path / "other", same, {"quant_method": "modelopt"})

    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("entries", [100, 5000])
def test_experts_of_gpt_oss_are_those_of_transformers(tmp_path: Path, entries: int) -> None:
    """Stored as outputs x inputs, seen as inputs x outputs, as the plain checkpoint has them."""
    name = "model.layers.0.mlp.experts.gate_up_proj"
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 40, 2, 16), generator=draw).to(torch.uint8)
    scales = torch.randint(110, 130, (3, 40, 2), generator=draw).to(torch.uint8)
    stored = {f"{name}_blocks": blocks, f"{name}_scales": scales}

    found = decoded(tmp_path, stored, {"quant_method": "mxfp4"}, name=name, entries=entries)

    assert torch.equal(found, convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32))


def test_a_pair_of_gpt_oss_is_measured_expert_by_expert(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (2, 24, 1, 16), generator=draw).to(torch.uint8)
    scales = torch.full((2, 24, 1), 120, dtype=torch.uint8)
    plain = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32)
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    base = save(tmp_path / "a", {f"{name}_blocks": blocks, f"{name}_scales": scales}, config=config)
    moved = plain + 0.001 * numbers(2, 32, 24, dtype=torch.float32)

    quantised = deltarank.compare(base, save(tmp_path / "b", {name: moved}))
    exact = deltarank.compare(save(tmp_path / "c", {name: plain}), tmp_path / "b")

    assert [m.name for m in quantised.matrices] == [f"{name}[0]", f"{name}[1]"]
    assert [m.losses for m in quantised.matrices] == [m.losses for m in exact.matrices]
    assert any("MXFP4" in note and "this very copy" in note for note in quantised.notes)


def tiny(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


def quantised_by_transformers(plain: Path, folder: Path, **how: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = BitsAndBytesConfig(**how)
        AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, device_map="cpu").save_pretrained(
            folder
        )
    return folder


def by_bitsandbytes(folder: Path) -> dict[str, Tensor]:
    """What bitsandbytes makes of the file, as rows of one block each: its CPU kernel (0.50) starts a new block with
    every row, which a file of 64 x 96 in blocks of 64 does not, and comes out 22 % off."""
    stored = load_file(folder / "model.safetensors")
    plain = {}
    for name, tensor in stored.items():
        state = {k.removeprefix(name + "."): v for k, v in stored.items() if k.startswith(name + ".")}
        if any("quant_state" in key for key in state):
            quant = bnb.functional.QuantState.from_dict(state, device=torch.device("cpu"))
            quant.dtype, quant.shape = torch.float32, torch.Size([2 * tensor.numel() // 64, 64])
            plain[name] = bnb.functional.dequantize_4bit(tensor, quant)
        elif (scales := stored.get(name.removesuffix("weight") + "SCB")) is not None and name.endswith(".weight"):
            plain[name] = bnb.functional.int8_vectorwise_dequant(tensor, scales)
    return plain


@pytest.mark.parametrize(
    "how",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"load_in_8bit": True},
    ],
    ids=["nf4 twice", "nf4", "fp4", "int8"],
)
def test_what_transformers_saved_with_bitsandbytes(tmp_path: Path, how: dict[str, Any]) -> None:
    plain = tiny(tmp_path / "plain")
    folder = quantised_by_transformers(plain, tmp_path / "quantised", **how)
    truth = by_bitsandbytes(folder)

    with open_checkpoint(folder) as base, open_checkpoint(plain) as finetune:
        plan = pair_checkpoints(base, finetune)
        assert {skip.name for skip in plan.skipped} == set()
        found = {pair.name: read(pair, entries=1000)[0] for pair in plan.pairs}

    assert found.keys() == truth.keys()
    assert len(found) == 7
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, truth[name].view(tensor.shape), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_stated_error_of_four_bits_is_what_rounding_makes(tmp_path: Path, kind: str) -> None:
    true = weights(256, 512)
    codes, state = bnb.functional.quantize_4bit(true, quant_type=kind)
    parts = {f"{NAME}.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
    found = bnb.functional.dequantize_4bit(codes, state)

    assert relative_error(found, true) == pytest.approx(stated_error(save(tmp_path, {NAME: codes, **parts})), rel=0.1)


def test_rows_may_begin_inside_a_byte(tmp_path: Path) -> None:
    true = weights(5, 7)
    codes, state = bnb.functional.quantize_4bit(true, quant_type="nf4")
    stored = {NAME: codes, **{f"{NAME}.{part}": t for part, t in state.as_dict(packed=True).items()}}

    found = decoded(tmp_path, stored, {"quant_method": "bitsandbytes"}, entries=7)

    torch.testing.assert_close(found, bnb.functional.dequantize_4bit(codes, state), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"{",
        b"[]",
        b'{"shape": [5, 7]}',
        b'{"shape": [5, 70000000], "blocksize": 64}',
        b'{"shape": "x"}',
        b"[" * 900,
    ],
)
def test_a_wrong_quant_state_is_refused(tmp_path: Path, state: bytes) -> None:
    codes, quant = bnb.functional.quantize_4bit(weights(5, 7), quant_type="nf4")
    stored = {NAME: codes, **{f"{NAME}.{part}": t for part, t in quant.as_dict(packed=True).items()}}
    stored[f"{NAME}.quant_state.bitsandbytes__nf4"] = torch.tensor(list(state), dtype=torch.uint8)
    folder = save(tmp_path, {name: tensor.contiguous() for name, tensor in stored.items()})

    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tensors[NAME].dtype == "U8"
        assert "do not match" in str(checkpoint.tensors[NAME].storage)


def test_fp8_is_found_without_a_configuration(tmp_path: Path) -> None:
    """A folder without config.json is decoded as well, where all that is needed stands in the file."""
    codes, quant = bnb.functional.quantize_4bit(weights(64, 64), quant_type="nf4")
    stored = {NAME: codes, **{f"{NAME}.{part}": t for part, t in quant.as_dict(packed=True).items()}}
    save_file(stored, tmp_path / "x.safetensors")

    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert checkpoint.tensors[NAME].dtype == "F32"
        assert checkpoint.tensors[NAME].shape == (64, 64)
