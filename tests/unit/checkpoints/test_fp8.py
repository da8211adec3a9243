"""FP8 comes out as the library that defines the format decodes it, ragged edges and all kinds of scales."""

from pathlib import Path

import pytest
import torch
from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer
from files import numbers, pairing, save
from quantised import NAME, decoded, fp8_blocks, relative_error, stated_error, weights
from torch import Tensor

import deltarank
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import PairingError
from deltarank.results import Outcome
from refusals import refused

INVERSE = NAME + "_scale_inv"


def fp8(block: tuple[int, int] | None = (128, 128)) -> dict[str, object]:
    return {"quant_method": "fp8", "weight_block_size": list(block) if block else None}


def quantised(folder: Path, true: Tensor) -> Path:
    """A checkpoint with this weight in blocks of 128 x 128."""
    codes, scales = fp8_blocks(true, (128, 128))
    return save(folder, {NAME: codes, INVERSE: scales}, config={"quantization_config": fp8()})


def by_library(codes: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    library = FP8BlockDequantizer(weight_block_size=block, dtype=torch.float32)
    return library.process({NAME: codes, INVERSE: scales})[NAME]


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((300, 520), (128, 128)),
        ((576, 256), (128, 128)),
        ((64, 48), (16, 8)),
        ((7, 5), (3, 4)),
        ((256, 128), (128, 128)),
    ],
)
@pytest.mark.parametrize("entries", [1, 700, 1 << 20])
def test_blocks_are_those_of_the_configuration(
    tmp_path: Path, shape: tuple[int, int], block: tuple[int, int], entries: int
) -> None:
    """300 x 520 in blocks of 128: the sides of the two tensors alone would say 100 x 104."""
    codes, scales = fp8_blocks(weights(*shape), block)

    found = decoded(tmp_path, {NAME: codes, INVERSE: scales}, fp8(block), entries=max(entries, 16))

    assert torch.equal(found, by_library(codes, scales, block))


@pytest.mark.parametrize("kind", ["tensor", "scalar", "row", "row of one side", "column", "none"])
def test_scales_of_whole_tensors_rows_and_columns(tmp_path: Path, kind: str) -> None:
    codes = weights(12, 20).div(0.001).to(torch.float8_e4m3fn)
    scales = {
        "tensor": torch.tensor([0.25]),
        "scalar": torch.tensor(0.25),
        "row": weights(12, 1, seed=3),
        "row of one side": weights(12, seed=3),
        "column": weights(1, 20, seed=3),
        "none": torch.tensor(1.0),
    }[kind]
    stored = {NAME: codes} if kind == "none" else {NAME: codes, NAME + "_scale": scales}
    factor = scales[:, None] if kind == "row of one side" else scales

    assert torch.equal(decoded(tmp_path, stored, {"quant_method": "fbgemm_fp8"}, entries=64), codes.float() * factor)


def test_the_format_of_compressed_tensors_is_read(tmp_path: Path) -> None:
    """It names its blocks elsewhere in the configuration."""
    codes, scales = fp8_blocks(weights(50, 70), (16, 32))
    how = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "block_structure": [16, 32]}}},
    }

    found = decoded(tmp_path, {NAME: codes, NAME + "_scale": scales}, how)

    assert torch.equal(found, by_library(codes, scales, (16, 32)))


@pytest.mark.parametrize("dtype", ["float8_e8m0fnu", "uint8", "bfloat16"])
def test_scales_that_are_exponents_or_halves(tmp_path: Path, dtype: str) -> None:
    codes, _ = fp8_blocks(weights(40, 64), (32, 32))
    powers = torch.tensor([[120, 127], [0, 130]], dtype=torch.uint8)
    scales = powers.float() if dtype == "bfloat16" else torch.exp2(powers.double() - 127).float()
    stored = {
        "uint8": powers,
        "bfloat16": powers.to(torch.bfloat16),
        "float8_e8m0fnu": powers.view(torch.float8_e8m0fnu),
    }

    found = decoded(tmp_path, {NAME: codes, INVERSE: stored[dtype]}, fp8((32, 32)))

    assert torch.equal(found, by_library(codes, scales, (32, 32)))


def test_a_stack_of_experts_has_a_grid_for_each(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    parts = [fp8_blocks(weights(40, 24, seed=i), (16, 16)) for i in range(3)]
    stored = {name: torch.stack([c for c, _ in parts]), name + "_scale_inv": torch.stack([s for _, s in parts])}

    found = decoded(tmp_path, stored, fp8((16, 16)), name=name)

    assert torch.equal(found, torch.stack([by_library(*part, (16, 16)) for part in parts]))


@pytest.mark.parametrize("dtype", ["e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz"])
def test_the_stated_error_is_what_rounding_makes(dtype: str, tmp_path: Path) -> None:
    true = weights(256, 512)
    codes, scales = fp8_blocks(true, (128, 128), getattr(torch, f"float8_{dtype}"))

    found = decoded(tmp_path, {NAME: codes, INVERSE: scales}, fp8())

    assert relative_error(found, true) == pytest.approx(stated_error(tmp_path / "base"), rel=0.05)


def test_without_a_block_size_a_grid_is_not_guessed(tmp_path: Path) -> None:
    codes, scales = fp8_blocks(weights(300, 520), (128, 128))
    other = "model.layers.0.self_attn.k_proj.weight"
    base = save(tmp_path / "a", {NAME: codes, INVERSE: scales, other: numbers(4, 4)}, config={})

    plan = pairing(base, save(tmp_path / "b", {NAME: weights(300, 520), other: numbers(4, 4, seed=1)}))

    (skip,) = (skip for skip in plan.skipped if skip.name == NAME)
    assert skip.outcome is Outcome.NOT_FLOATING
    assert "weight_block_size" in skip.reason


@pytest.mark.parametrize("block", [[128], [0, 128], ["a", "b"], "128", [2**40, 1], None, [True, True]])
def test_an_implausible_block_size_is_ignored(tmp_path: Path, block: object) -> None:
    codes, scales = fp8_blocks(weights(300, 520), (128, 128))
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
    base = save(tmp_path / "a", {NAME: codes, INVERSE: scales}, config=config)

    with refused("not-floating", PairingError, match="weight_block_size"):
        pairing(base, save(tmp_path / "b", {NAME: weights(300, 520)}))


def test_scales_in_another_shard_are_found(tmp_path: Path) -> None:
    codes, scales = fp8_blocks(weights(40, 24), (16, 16))
    tensors = {NAME: codes, INVERSE: scales}
    base = save(tmp_path / "a", tensors, config={"quantization_config": fp8((16, 16))}, shards=2)
    with open_checkpoint(base) as before, open_checkpoint(save(tmp_path / "b", {NAME: weights(40, 24)})) as after:
        (pair,) = pair_checkpoints(before, after).pairs
        buffer = bytearray(pair.base.nbytes)
        pair.base.source.prefetch(pair.base.file, pair.base.start, pair.base.nbytes)
        pair.base.source.read_into(pair.base.file, pair.base.start, memoryview(buffer))

    found = torch.frombuffer(buffer, dtype=torch.float32).view(40, 24)
    assert torch.equal(found, by_library(codes, scales, (16, 16)))


def test_any_byte_range_can_be_read(tmp_path: Path) -> None:
    """Two tensors lie one after the other in the virtual file."""
    names = [NAME, "model.layers.1.self_attn.q_proj.weight"]
    stored, whole = {}, []
    for i, name in enumerate(names):
        codes, scales = fp8_blocks(weights(5, 7, seed=i), (2, 3))
        stored |= {name: codes, name + "_scale_inv": scales}
        whole.append(by_library(codes, scales, (2, 3)))
    folder = save(tmp_path / "a", stored, config={"quantization_config": fp8((2, 3))})
    with open_checkpoint(folder) as checkpoint:
        infos = sorted((checkpoint.tensors[name] for name in names), key=lambda info: info.start)
        content = b"".join(whole[names.index(info.name)].numpy().tobytes() for info in infos)
        for start, length in [(0, 280), (1, 3), (27, 90), (130, 20), (279, 1), (140, 140), (0, 0)]:
            buffer = bytearray(length)
            checkpoint.source.read_into(infos[0].file, start, memoryview(buffer))
            assert bytes(buffer) == content[start : start + length]


def test_rounding_of_a_finetune_is_in_the_floor_and_that_of_a_base_is_noted(tmp_path: Path) -> None:
    true = weights(256, 256)
    stored = quantised(tmp_path / "q", true)
    plain = save(tmp_path / "p", {NAME: true})

    into = deltarank.compare(plain, stored)
    out = deltarank.compare(stored, plain)

    assert into.matrices[0].rounding_floor == pytest.approx(1, abs=0.05)
    assert into.matrices[0].relative_norm == pytest.approx(0.0265, rel=0.05)
    assert into.verdict.kind == "rounding"
    assert any("the rounding floor accounts for it" in note for note in into.notes)
    assert out.matrices[0].dtype == "FP8 (e4m3, blocks of 128 x 128) -> float32"
    assert any("the base is stored as FP8" in note and "2.6 %" in note for note in out.notes)


def test_a_changed_configuration_changes_the_fingerprint(tmp_path: Path) -> None:
    """Else a run that died could go on with other numbers."""
    codes, scales = fp8_blocks(weights(4, 4), (2, 2))
    prints = set()
    for i, block in enumerate([(2, 2), (3, 3)]):
        config = {"quantization_config": fp8(block)}
        folder = save(tmp_path / "a", {NAME: codes, INVERSE: scales}, config=config)
        with open_checkpoint(folder) as checkpoint:
            prints.add((i, checkpoint.fingerprint.split()[1]))
    assert len({mark for _, mark in prints}) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (0.0001, "was trained from this quantised copy, so the delta does not contain the rounding"),
        (0.002, "% of the energy is rounding"),
    ],
)
def test_a_note_says_whether_the_delta_contains_the_bases_rounding(tmp_path: Path, change: float, said: str) -> None:
    """0.0265 x 0.02 = 0.00053 is what rounding moves a weight by."""
    codes, scales = fp8_blocks(weights(256, 256), (128, 128))
    base = save(tmp_path / "q", {NAME: codes, INVERSE: scales}, config={"quantization_config": fp8()})
    moved = by_library(codes, scales, (128, 128)) + change * numbers(256, 256, dtype=torch.float32)

    notes = deltarank.compare(base, save(tmp_path / "p", {NAME: moved})).notes

    assert any(said in note for note in notes), notes


def test_a_note_says_when_a_delta_is_mostly_the_bases_rounding(tmp_path: Path) -> None:
    true = weights(256, 256)
    base = quantised(tmp_path / "q", true)

    notes = deltarank.compare(base, save(tmp_path / "p", {NAME: true + 0.0001})).notes

    assert any("Most of this delta may be that rounding" in note for note in notes), notes


def test_a_plan_counts_the_bytes_that_are_stored(tmp_path: Path) -> None:
    """A byte for each number and a scale for each block, and not the four bytes of what they become."""
    base = quantised(tmp_path / "q", weights(256, 256))
    finetune = save(tmp_path / "p", {NAME: weights(256, 256)})

    assert deltarank.plan(base, finetune).read_bytes == 256 * 256 * (1 + 4) + 4 * 4
