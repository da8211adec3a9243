"""Whole numbers of a few bits come out as the libraries that pack them unpack them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.pack_quantized import unpack_from_int32
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from files import llama, pairing, save
from quantised import NAME, decoded, relative_error, stated_error, weights
from torch import Tensor

from deltarank.checkpoints import open_checkpoint
from deltarank.errors import CheckpointError, PairingError
from refusals import refused

STEM = NAME.removesuffix(".weight")


def scheme(form: str, **args: Any) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=form)


def qparams(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """By the library's own rule, a scale and a zero for each group."""
    group = args.group_size or weight.shape[1]
    low, high = (f(weight.view(weight.shape[0], -1, group), dim=-1) for f in (torch.amin, torch.amax))
    return calculate_qparams(low, high, args)


def by_library(weight: Tensor, how: QuantizationScheme, **extra: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What compressed-tensors stores of a weight, and what it reads again."""
    library = BaseCompressor.get_value_from_registry(how.format)
    scale, zero = qparams(weight, how.weights)
    zeros = {} if how.weights.symmetric else {"weight_zero_point": zero}
    stored = library.compress({"weight": weight, "weight_scale": scale, **zeros, **extra}, how)
    plain = library.decompress(dict(stored), how)["weight"]
    return {f"{STEM}.{part}": tensor for part, tensor in stored.items()}, plain


def settings(bits: int) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": bits}}}}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 32), (4, None), (2, 64), (3, 32), (8, None)])
def test_pack_quantized(tmp_path: Path, bits: int, group: int | None, symmetric: bool) -> None:
    strategy = "group" if group else "channel"
    how = scheme("pack-quantized", num_bits=bits, group_size=group, strategy=strategy, symmetric=symmetric)
    stored, plain = by_library(weights(75, 192), how)

    found = decoded(tmp_path, stored, settings(bits), entries=2000)

    assert torch.equal(found, plain)


def test_columns_in_an_order_of_their_own(tmp_path: Path) -> None:
    how = scheme("pack-quantized", num_bits=4, group_size=32, strategy="group", symmetric=True)
    order = torch.randperm(192, generator=torch.Generator().manual_seed(1)) // 32
    stored, _ = by_library(weights(40, 192), how)
    codes = unpack_from_int32(stored[f"{STEM}.weight_packed"], 4, torch.Size([40, 192])).int()
    stored[f"{STEM}.weight_g_idx"] = order.to(torch.int32)

    found = decoded(tmp_path, stored, settings(4))

    assert torch.equal(found, codes * stored[f"{STEM}.weight_scale"][:, order])


@pytest.mark.parametrize("symmetric", [True, False])
def test_int_quantized(tmp_path: Path, symmetric: bool) -> None:
    how = scheme("int-quantized", num_bits=8, strategy="channel", symmetric=symmetric)
    stored, plain = by_library(weights(40, 96), how)

    assert torch.equal(decoded(tmp_path, stored, settings(8), entries=500), plain)


def test_bits_are_those_of_the_group_that_fits(tmp_path: Path) -> None:
    """One checkpoint, matrices of 4 and of 8 bits."""
    how = scheme("pack-quantized", num_bits=8, group_size=32, strategy="group", symmetric=True)
    stored, plain = by_library(weights(40, 96), how)
    mixed = {
        "quant_method": "compressed-tensors",
        "config_groups": {f"group_{bits}": {"weights": {"num_bits": bits}} for bits in (4, 8)},
    }

    assert torch.equal(decoded(tmp_path, stored, mixed), plain)


@pytest.mark.parametrize(("bits", "group"), [(4, 128), (8, 1024), (3, 32)])
def test_the_stated_error_is_what_rounding_makes(tmp_path: Path, bits: int, group: int) -> None:
    true = weights(256, 1024)
    how = scheme("pack-quantized", num_bits=bits, group_size=group, strategy="group", symmetric=True)
    stored, _ = by_library(true, how)

    found = decoded(tmp_path, stored, settings(bits))

    assert relative_error(found, true) == pytest.approx(stated_error(tmp_path / "base"), rel=0.1)


def pack_gptq(codes: Tensor, bits: int) -> Tensor:
    """Numbers down the columns into one long row of bits, the lowest first, cut into words: GPTQ's layout."""
    rows, columns = codes.shape
    places = torch.arange(rows * bits)
    bit = codes[places // bits] >> (places % bits)[:, None] & 1
    words = (bit.view(-1, 32, columns).to(torch.int64) << torch.arange(32)[None, :, None]).sum(1)
    return (words - ((words >> 31) << 32)).to(torch.int32)


def gptq(bits: int, *, second: bool, order: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """A matrix of 64 outputs x 128 inputs in groups of 32, by the definition of the format, and what it stands for."""
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (128, 64), generator=draw)
    zeros = torch.randint(2**bits, (4, 64), generator=draw)
    scales = torch.rand(4, 64, generator=draw).to(torch.float16)
    which = torch.arange(128) // 32 if order is None else order
    stored = {
        "qweight": pack_gptq(codes, bits),
        "qzeros": pack_gptq(((zeros if second else zeros - 1) % 2**bits).T, bits).T.contiguous(),
        "scales": scales,
        "g_idx": which.to(torch.int32),
    }
    plain = (scales.float()[which] * (codes - zeros[which])).T
    return {f"{STEM}.{part}": tensor for part, tensor in stored.items()}, plain


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("second", [False, True])
def test_gptq(tmp_path: Path, bits: int, second: bool) -> None:
    """The first format stores zeros less one, and wraps where that is under zero."""
    order = torch.randperm(128, generator=torch.Generator().manual_seed(7)) // 32
    stored, plain = gptq(bits, second=second, order=order)
    how = {"quant_method": "gptq", "bits": bits, "group_size": 32}

    found = decoded(tmp_path, stored, how | ({"checkpoint_format": "gptq_v2"} if second else {}), entries=1000)

    assert torch.equal(found, plain)


def test_gptq_without_an_order_of_columns(tmp_path: Path) -> None:
    stored, plain = gptq(4, second=False)
    del stored[f"{STEM}.g_idx"]

    assert torch.equal(decoded(tmp_path, stored, {"quant_method": "gptq", "bits": 4}), plain)


def test_awq(tmp_path: Path) -> None:
    """Against the converter of compressed-tensors, and its own reading of what that makes."""
    draw = torch.Generator().manual_seed(3)
    stored = {
        f"{STEM}.qweight": torch.randint(-(2**31), 2**31, (128, 12), generator=draw).to(torch.int32),
        f"{STEM}.qzeros": torch.randint(-(2**31), 2**31, (4, 12), generator=draw).to(torch.int32),
        f"{STEM}.scales": torch.rand(4, 96, generator=draw),
    }
    converted = AutoAWQConverter(group_size=32).process(dict(stored))
    how = scheme("pack-quantized", num_bits=4, group_size=32, strategy="group", symmetric=False)
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    plain = library.decompress({name.removeprefix(STEM + "."): t for name, t in converted.items()}, how)["weight"]

    found = decoded(tmp_path, stored, {"quant_method": "awq", "bits": 4, "group_size": 32}, entries=1000)

    assert torch.equal(found, plain)


@pytest.mark.parametrize("method", ["aqlm", "hqq", "quip_sharp"])
def test_an_unsupported_quantisation_method_is_named(tmp_path: Path, method: str) -> None:
    codes = {"model.layers.0.mlp.up_proj.codes": torch.ones(4, 4, dtype=torch.int16)}
    folder = save(tmp_path, codes, config={"quantization_config": {"quant_method": method}})

    with refused("quantised-format", CheckpointError, match=method):
        open_checkpoint(folder)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
@pytest.mark.parametrize("shape", [(1, 1), (4,), (0, 4), (128, 64)])
def test_parts_that_do_not_match_are_skipped_with_a_reason(tmp_path: Path, part: str, shape: tuple[int, ...]) -> None:
    stored, _ = gptq(4, second=False)
    stored[f"{STEM}.{part}"] = torch.zeros(shape, dtype=stored[f"{STEM}.{part}"].dtype)
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}

    with pytest.raises((PairingError, CheckpointError)) as caught:
        pairing(save(tmp_path / "a", stored, config=config), save(tmp_path / "b", llama()))

    assert caught.value.slug in ("quantised-format", "not-floating")


def test_a_wrong_weight_shape_is_refused(tmp_path: Path) -> None:
    how = scheme("pack-quantized", num_bits=4, group_size=32, strategy="group", symmetric=True)
    stored, _ = by_library(weights(40, 96), how)
    for sides in ([40, 2**40], [40, -96], [2**31, 96], [41, 96], [40]):
        stored[f"{STEM}.weight_shape"] = torch.tensor(sides)
        with open_checkpoint(save(tmp_path, stored, config={"quantization_config": settings(4)})) as checkpoint:
            assert NAME not in checkpoint.tensors
