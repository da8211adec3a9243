"""The writer's files are read by safetensors' own reader."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from deltarank.adapters import (
    FillBuffer,
    StreamedTensor,
    fill_from_file,
    fill_from_files,
    fill_interleaved,
    write_factors,
    write_weights,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_safetensors_reads_what_was_written_as_factors(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = torch.randn(8, 300).to(dtype), torch.randn(500, 8).to(dtype)
    kept = tmp_path / "00000.factors"
    write_factors(kept, a, b)
    out = tmp_path / "adapter_model.safetensors"
    write_weights(
        out,
        [
            StreamedTensor("a", dtype, (8, 300), fill_from_file(kept, 0)),
            StreamedTensor("b", dtype, (500, 8), fill_from_file(kept, a.nbytes)),
            StreamedTensor("nothing", torch.float32, (3, 5)),
        ],
    )
    read = load_file(out)

    assert torch.equal(read["a"], a)
    assert torch.equal(read["b"], b)
    assert torch.equal(read["nothing"], torch.zeros(3, 5))


def test_a_transposed_view_is_kept_in_its_own_order(tmp_path: Path) -> None:
    a, b = torch.randn(300, 8).T, torch.randn(8, 500).T
    write_factors(tmp_path / "x", a, b)
    write_weights(tmp_path / "y", [StreamedTensor("a", torch.float32, (8, 300), fill_from_file(tmp_path / "x", 0))])

    assert torch.equal(load_file(tmp_path / "y")["a"], a)


def test_tensors_larger_than_a_block_come_whole(tmp_path: Path) -> None:
    a, b = torch.randn(3000, 1000), torch.randn(1, 3000)
    write_factors(tmp_path / "x", a, b)
    write_weights(tmp_path / "y", [StreamedTensor("a", torch.float32, (3000, 1000), fill_from_file(tmp_path / "x", 0))])

    assert torch.equal(load_file(tmp_path / "y")["a"], a)


def test_the_file_is_marked_as_torch_s(tmp_path: Path) -> None:
    """transformers and PEFT refuse a file without it."""
    write_weights(tmp_path / "y", [StreamedTensor("a", torch.float32, (2, 2))])

    with safe_open(tmp_path / "y", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_factors_cut_short_are_an_error(tmp_path: Path) -> None:
    write_factors(tmp_path / "x", torch.zeros(2, 2), torch.zeros(2, 2))
    stored = [StreamedTensor("a", torch.float32, (9, 9), fill_from_file(tmp_path / "x", 0))]

    with pytest.raises(OSError, match="was cut short"):
        write_weights(tmp_path / "y", stored)


@pytest.mark.parametrize("block", [1, 6, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_factors_of_experts_are_put_together_whatever_the_blocks(
    tmp_path: Path, block: int, dtype: torch.dtype
) -> None:
    """A one below the other, B column by column side by side; zeros for the expert that has no file."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 2, 5, generator=generator).to(dtype)
    b = torch.randn(3, 7, 2, generator=generator).to(dtype)
    a[1], b[1] = 0, 0
    paths = [tmp_path / "0", None, tmp_path / "2"]
    for number, path in enumerate(paths):
        if path is not None:
            write_factors(path, a[number], b[number])
    size = dtype.itemsize
    below = fill_from_files(paths, 2 * 5 * size)
    beside = fill_interleaved(paths, 2 * 5 * size, (7, 2), size)

    assert _filled(below, 3 * 2 * 5 * size, block) == _bytes(a)
    assert _filled(beside, 3 * 7 * 2 * size, block) == _bytes(b.permute(1, 2, 0))


def _filled(fill: FillBuffer, length: int, block: int) -> bytes:
    buffer = bytearray(length)
    for first in range(0, length, block):
        fill(first, memoryview(buffer)[first : first + block])
    return bytes(buffer)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
