"""Checkpoints that MLX quantised stand for what MLX reads in them: scale * code + bias."""

from pathlib import Path
from typing import Any

import pytest
import torch
from files import save
from quantised import NAME, decoded, relative_error, stated_error, weights
from torch import Tensor

import deltarank
from deltarank.checkpoints import open_checkpoint
from deltarank.errors import CheckpointError
from refusals import refused

STEM = NAME.removesuffix(".weight")


def pack(codes: Tensor, bits: int) -> Tensor:
    """Each row as one stream of bits, the lowest first, cut into words of 32 bits."""
    rows, columns = codes.shape
    stream = (codes[:, :, None] >> torch.arange(bits) & 1).view(rows, columns * bits // 32, 32)
    words = (stream.to(torch.int64) << torch.arange(32)).sum(-1)
    return (words - ((words >> 31) << 32)).to(torch.int32).view(torch.uint32)


def affine(weight: Tensor, bits: int, group: int, *, name: str = NAME) -> tuple[dict[str, Tensor], Tensor]:
    """As MLX stores a weight by its definition, and what that stands for."""
    groups = weight.view(*weight.shape[:-1], -1, group)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scales, biases = ((high - low) / (2**bits - 1)).to(torch.float16), low.to(torch.float16)
    codes = ((groups - biases.float()) / scales.float()).round().clamp(0, 2**bits - 1)
    plain = (codes * scales.float() + biases.float()).view(weight.shape)
    packed = pack(codes.to(torch.int64).reshape(-1, weight.shape[-1]), bits).view(*weight.shape[:-1], -1)
    stem = name.removesuffix(".weight")
    return {name: packed, f"{stem}.scales": scales.squeeze(-1), f"{stem}.biases": biases.squeeze(-1)}, plain


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_affine(bits: int, group: int, tmp_path: Path) -> None:
    stored, plain = affine(weights(75, 384), bits, group)

    found = decoded(tmp_path, stored, {"bits": bits, "group_size": group, "mode": "affine"}, entries=3000)

    assert torch.equal(found, plain)


def test_the_stated_error_is_that_of_the_format(tmp_path: Path) -> None:
    true = weights(256, 1024)
    stored, plain = affine(true, 4, 64)
    decoded(tmp_path, stored, {"bits": 4, "group_size": 64})

    assert relative_error(plain, true) == pytest.approx(stated_error(tmp_path / "base"), rel=0.1)


def test_a_module_may_have_bits_of_its_own(tmp_path: Path) -> None:
    stored, plain = affine(weights(8, 128), 8, 32)

    found = decoded(tmp_path, stored, {"bits": 4, "group_size": 64, STEM: {"bits": 8, "group_size": 32}})

    assert torch.equal(found, plain)


def test_mxfp4_nvfp4_and_mxfp8(tmp_path: Path) -> None:
    """By their definitions: e2m1 or e4m3 codes, and scales that are powers of 2 (nvfp4: e4m3)."""
    draw = torch.Generator().manual_seed(0)
    fp4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = torch.randint(16, (6, 128), generator=draw)
    exponents = torch.randint(120, 130, (6, 4), generator=draw).to(torch.uint8)
    small = torch.rand(6, 8, generator=draw).to(torch.float8_e4m3fn)
    eight = torch.randn(6, 128, generator=draw).to(torch.float8_e4m3fn)
    for name, words, scales, plain in (
        ("mxfp4", pack(codes, 4), exponents, fp4[codes] * (2.0 ** (exponents.float() - 127)).repeat_interleave(32, 1)),
        ("nvfp4", pack(codes, 4), small.view(torch.uint8), fp4[codes] * small.float().repeat_interleave(16, 1)),
        (
            "mxfp8",
            eight.view(torch.uint8).view(torch.uint32),
            exponents,
            eight.float() * (2.0 ** (exponents.float() - 127)).repeat_interleave(32, 1),
        ),
    ):
        found = decoded(tmp_path / name, {NAME: words, f"{STEM}.scales": scales}, {"mode": name, "bits": 4})
        assert torch.equal(found, plain), name


@pytest.mark.parametrize("how", [None, {"bits": 4, "group_size": 32}, {"bits": "4", "group_size": 64}, {"bits": 40}])
def test_without_fitting_settings_the_format_is_named(how: Any, tmp_path: Path) -> None:
    stored, _ = affine(weights(8, 128), 4, 64)
    folder = save(tmp_path, stored, config={"quantization": how} if how else {})
    with refused("quantised-format", CheckpointError, match="MLX") as caught:
        open_checkpoint(folder)
    assert "--dequantize" in caught.value.cure


def test_a_fused_finetune_is_compared_with_its_base(tmp_path: Path) -> None:
    """Case of a user: the delta is the LoRA's and the rounding's, over all matrices."""
    names = [f"model.layers.{layer}.mlp.{side}_proj.weight" for layer in range(2) for side in ("up", "down")]
    base = {name: weights(128, 128, seed=i) for i, name in enumerate(names)}
    stored, plain = {}, {}
    for name, weight in base.items():
        part, plain[name] = affine(weight + 0.02 * torch.randn(128, 2) @ torch.randn(2, 128), 4, 64, name=name)
        stored |= part
    config = {"quantization": {"bits": 4, "group_size": 64}}

    results = deltarank.compare(save(tmp_path / "base", base), save(tmp_path / "mlx", stored, config=config))

    assert len(results.matrices) == len(names)
    assert not results.skipped
    for matrix in results.matrices:
        delta = (plain[matrix.name] - base[matrix.name]).double()
        assert matrix.frobenius == pytest.approx(float(delta.norm()), rel=1e-5)
        assert matrix.singular_values[0] == pytest.approx(float(torch.linalg.matrix_norm(delta, 2)), rel=1e-5)
