"""Yardsticks: against the libraries, the definitions of the formats, and known errors."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from deltarank.errors import UsageError
from deltarank.models import get_yardstick
from deltarank.system import silence_logging
from refusals import refused

# ||rounded - W|| / ||W|| for W ~ N(0, 0.02), 1024 x 4096
KNOWN_ERRORS = {"q8_0": 0.0054, "q4_0": 0.0858, "nf4": 0.0920, "int8": 0.0087, "fp8": 0.0265}


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def fake_quantise(name: str, weight: torch.Tensor) -> torch.Tensor:
    return get_yardstick(name).fake_quantise(weight)


def torchao(name: str, weight: torch.Tensor) -> torch.Tensor:
    """What the library itself reads back. Its remarks about kernels for GPUs are not the test's business."""
    with silence_logging():
        from torchao.quantization import Float8Tensor, Int8Tensor, PerRow
    kind: Any = {"int8": Int8Tensor, "fp8": Float8Tensor}[name]
    read: torch.Tensor = kind.from_hp(weight, granularity=PerRow()).dequantize()
    return read


@pytest.mark.parametrize("name", KNOWN_ERRORS)
def test_the_error_is_the_one_that_is_known(name: str) -> None:
    weight = normal(1024, 4096)
    rounded = fake_quantise(name, weight)

    assert rounded.dtype == torch.float32
    assert float((rounded - weight).norm() / weight.norm()) == pytest.approx(KNOWN_ERRORS[name], rel=0.01)


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("shape", [(64, 256), (3, 7), (1, 1000)])
def test_rows_with_a_scale_are_torchao_s_to_the_bit(name: str, shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    weight[0] *= 1000

    assert torch.equal(fake_quantise(name, weight), torchao(name, weight))


def test_q8_0_is_the_format_s_definition() -> None:
    """Blocks of 32 with a float16 scale, the largest magnitude at 127 (ggml's quantize_row_q8_0_ref)."""
    weight = normal(5, 64)
    blocks = weight.numpy().reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = blocks / scale
    steps = np.sign(steps) * np.floor(np.abs(steps) + np.float32(0.5))  # roundf: halves away from zero
    expected = scale.astype(np.float16).astype(np.float32) * steps

    assert fake_quantise("q8_0", weight).numpy() == pytest.approx(expected.reshape(5, 64), rel=1e-6)


def test_q4_0_is_the_format_s_definition() -> None:
    """Blocks of 32 with a float16 scale, the entry of largest magnitude at -8 (ggml's quantize_row_q4_0_ref)."""
    weight = normal(5, 64)
    for block, read in zip(*(each.reshape(-1, 32) for each in (weight, fake_quantise("q4_0", weight))), strict=True):
        largest = float(block[block.abs().argmax()])
        scale = np.float32(largest / -8)
        steps = np.clip(np.trunc(block.numpy() / scale + 8.5), 0, 15) - 8

        assert read.numpy() == pytest.approx(np.float32(np.float16(scale)) * steps, rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 128), (64, 96), (128, 65), (16, 688)])
def test_nf4_is_the_nearest_of_the_normal_s_quantiles(shape: tuple[int, int]) -> None:
    """Dettmers and others 2023: eight quantiles above zero and seven below, evenly spaced in probability."""
    offset = 0.9677083
    above = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([below, [0.0], above])) / above.max()
    weight = normal(*shape)
    blocks = weight.numpy().reshape(-1, 64)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = levels[np.abs(blocks[..., None] / largest[..., None] - levels).argmin(axis=-1)]

    assert fake_quantise("nf4", weight).numpy() == pytest.approx((nearest * largest).reshape(shape), abs=1e-5)


@pytest.mark.parametrize("name", KNOWN_ERRORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_is_upcast_and_left_as_it_was(name: str, dtype: torch.dtype) -> None:
    weight = normal(8, 64).to(dtype)
    before = weight.clone()

    assert torch.equal(fake_quantise(name, weight), fake_quantise(name, weight.float()))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("name", KNOWN_ERRORS)
@pytest.mark.parametrize("columns", [33, 80, 96, 688])
def test_rows_of_any_length_are_rounded_as_well_as_others(name: str, columns: int) -> None:
    weight = normal(256, columns)

    error = float((fake_quantise(name, weight) - weight).norm() / weight.norm())
    assert 0.5 * KNOWN_ERRORS[name] < error < 1.1 * KNOWN_ERRORS[name]


@pytest.mark.parametrize("name", KNOWN_ERRORS)
def test_zeros_stay_zeros(name: str) -> None:
    weight = normal(4, 64)
    weight[1] = 0

    assert not fake_quantise(name, weight)[1].any()
    assert not fake_quantise(name, torch.zeros(2, 64)).any()


@pytest.mark.parametrize("name", KNOWN_ERRORS)
def test_a_transposed_view_is_rounded_as_the_matrix_that_it_is(name: str) -> None:
    weight = normal(64, 96)

    assert torch.equal(fake_quantise(name, weight.T), fake_quantise(name, weight.T.contiguous()))


TENSORS = {
    "model.layers.3.mlp.down_proj.weight": ((64, 128), True),
    "model.layers.3.mlp.gate_proj.weight": ((128, 64), True),
    "model.layers.0.block_sparse_moe.experts.1.w1.weight": ((64, 64), True),
    "model.layers.0.mlp.experts.gate_up_proj": ((8, 64, 128), True),
    "transformer.h.0.attn.c_attn.weight": ((64, 192), True),
    "model.embed_tokens.weight": ((500, 64), False),
    "transformer.wte.weight": ((500, 64), False),
    "lm_head.weight": ((500, 64), False),
    "output.weight": ((500, 64), False),
    "model.layers.3.input_layernorm.weight": ((64,), False),
    "model.layers.3.self_attn.q_proj.bias": ((64,), False),
    "model.layers.0.mlp.gate.weight": ((8, 64), False),
    "model.layers.0.mlp.router.weight": ((8, 64), False),
    "model.layers.0.mlp.experts.gate_up_proj_bias": ((8, 64), False),
    "model.layers.0.mixer.conv1d.weight": ((64, 1, 4), False),
    "model.layers.0.mixer.A_log": ((64, 16), False),
}


@pytest.mark.parametrize("tensor", TENSORS)
def test_the_matrices_of_the_layers_are_rounded_and_nothing_else(tensor: str) -> None:
    shape, expected = TENSORS[tensor]

    for name in KNOWN_ERRORS:
        assert get_yardstick(name).applies_to(tensor, shape) == expected


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_a_last_block_that_is_not_full_is_rounded_by_itself(name: str) -> None:
    weight = normal(8, 80)
    rounded = fake_quantise(name, weight)

    assert torch.equal(rounded[:, :64], fake_quantise(name, weight[:, :64]))
    assert torch.equal(rounded[:, 64:], fake_quantise(name, torch.nn.functional.pad(weight[:, 64:], (0, 16)))[:, :16])
    assert float((rounded[:, 64:] - weight[:, 64:]).norm() / weight[:, 64:].norm()) < 1.5 * KNOWN_ERRORS[name]


def test_an_unknown_yardstick_is_answered_with_those_there_are() -> None:
    with refused("no-such-yardstick", UsageError, match="q8_0, q4_0, nf4, int8, fp8"):
        get_yardstick("q4_k")


def test_a_missing_library_is_reported_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)

    with refused("yardstick-missing", UsageError) as caught:
        get_yardstick("nf4")
    assert "deltarank[yardsticks]" in caught.value.cure
    assert get_yardstick("q4_0").name == "q4_0"  # which does not need it
