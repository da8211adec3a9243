"""A LoRA that was merged onto a quantised base, or quantised after the merge, is a merged LoRA of its rank."""

from collections.abc import Callable, Mapping
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from files import save
from quantised import fp8_blocks
from torch import Tensor

import deltarank
from deltarank.results import Verdict, VerdictKind

SHAPES = {"mlp.up_proj": (256, 192), "mlp.down_proj": (192, 256), "self_attn.q_proj": (192, 192)}
Tensors = dict[str, Tensor]
Quantise = Callable[[Mapping[str, Tensor]], tuple[Tensors, Tensors]]


def fp8(weights: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """As stored, and as read."""
    stored, plain = {}, {}
    for name, weight in weights.items():
        codes, scales = fp8_blocks(weight, (64, 64))
        stored |= {name: codes, f"{name}_scale_inv": scales}
        plain[name] = codes.float() * scales.repeat_interleave(64, 0).repeat_interleave(64, 1)
    return stored, plain


def nf4(weights: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    stored, plain = {}, {}
    for name, weight in weights.items():
        codes, state = bnb.functional.quantize_4bit(weight, quant_type="nf4")
        stored |= {name: codes, **{f"{name}.{part}": value for part, value in state.as_dict(packed=True).items()}}
        plain[name] = bnb.functional.dequantize_4bit(codes, state).float()
    return stored, plain


FORMATS = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [64, 64]}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
}


def weights() -> Tensors:
    """Normal, of which some columns are larger."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for layer in range(2):
        for name, (rows, columns) in SHAPES.items():
            sizes = 0.02 * torch.exp(0.3 * torch.randn(columns, generator=generator))
            made[f"model.layers.{layer}.{name}.weight"] = sizes * torch.randn(rows, columns, generator=generator)
    return made


def with_lora(base: Mapping[str, Tensor], relative_norm: float) -> Tensors:
    """A LoRA of rank 8."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, weight in base.items():
        lora = torch.randn(len(weight), 8, generator=generator) @ torch.randn(8, weight.shape[1], generator=generator)
        made[name] = weight + lora * (relative_norm * weight.norm() / lora.norm())
    return made


def trained_whole(base: Mapping[str, Tensor], relative_norm: float) -> Tensors:
    """Singular values that fall as 1 / i."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for name, weight in base.items():
        u, _, v = torch.linalg.svd(torch.randn(weight.shape, generator=generator), full_matrices=False)
        values = torch.exp(0.05 * torch.randn(len(v), generator=generator)) / torch.arange(1.0, len(v) + 1)
        made[name] = weight + (u * values) @ v * (relative_norm * weight.norm() / values.norm())
    return made


def verdicts(
    tmp_path: Path, form: str, change: Callable[[Mapping[str, Tensor], float], Tensors], relative_norm: float
) -> dict[str, Verdict]:
    """By how the finetune was made and is stored."""
    quantise, how = FORMATS[form]
    config = {"quantization_config": how}
    true = weights()
    stored, plain = quantise(true)
    base, original = save(tmp_path / "base", stored, config=config), save(tmp_path / "original", true)
    changed = {"on the decoded": change(plain, relative_norm), "on the original": change(true, relative_norm)}
    found = {}
    for name, tensors in changed.items():
        half = save(tmp_path / f"{name} half", {key: tensor.bfloat16() for key, tensor in tensors.items()})
        again = save(tmp_path / f"{name} again", quantise(tensors)[0], config=config)
        found[f"bfloat16 {name}"] = deltarank.compare(base, half, ranks=(8, 16), solver="exact").verdict
        found[f"quantised {name}"] = deltarank.compare(base, again, ranks=(8, 16), solver="exact").verdict
    found["quantised, base not"] = deltarank.compare(original, again, ranks=(8, 16), solver="exact").verdict
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_a_merged_lora_is_one_whatever_was_quantised(tmp_path: Path, form: str) -> None:
    for relative_norm in (0.1, 0.3):
        for name, verdict in verdicts(tmp_path, form, with_lora, relative_norm).items():
            assert (verdict.kind, verdict.signal_rank) == (VerdictKind.MERGED_LORA, 8), (name, relative_norm)
            if name == "bfloat16 on the original":
                assert any("is the rounding of the quantised base" in sentence for sentence in verdict.sentences)


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_finetune_of_a_quantised_base_is_no_merged_lora(tmp_path: Path, form: str) -> None:
    for relative_norm in (0.02, 0.1):
        for name, verdict in verdicts(tmp_path, form, trained_whole, relative_norm).items():
            assert verdict.kind in (VerdictKind.FULL, VerdictKind.ROUNDING), (name, relative_norm)
