"""Bytes come out as they lie in the file, through buffers that are used again."""

import itertools
import mmap
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from files import llama, numbers, read, save

from deltarank.checkpoints import LocalSource, Pair, Prefetcher, open_checkpoint, pair_checkpoints, read_chunks
from deltarank.errors import CheckpointError
from refusals import refused


def _open_files() -> int:
    """0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return save(tmp_path / "base", llama(), shards=2), save(tmp_path / "finetune", llama(seed=9), shards=3)


@pytest.mark.parametrize("entries", [1, 7, 16, 100, 1 << 20])
def test_chunks_give_each_row_once_and_exactly(two: tuple[Path, Path], entries: int) -> None:
    """Shards are cut differently in the two."""
    with open_checkpoint(two[0]) as base, open_checkpoint(two[1]) as finetune:
        plan = pair_checkpoints(base, finetune)
        for pair in (*plan.pairs, *plan.summed):
            ours, theirs = read(pair, entries=entries)
            assert torch.equal(ours, llama()[pair.name].reshape(ours.shape))
            assert torch.equal(theirs, llama(seed=9)[pair.name].reshape(theirs.shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_stored_types_come_out_as_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"a.weight": numbers(5, 3, dtype=dtype), "odd": torch.ones(3, dtype=torch.uint8)}
    one, other = save(tmp_path / "a", tensors), save(tmp_path / "b", tensors)
    with open_checkpoint(one) as base, open_checkpoint(other) as finetune:
        (pair,) = pair_checkpoints(base, finetune).pairs
        assert read(pair)[0].dtype == dtype
        assert torch.equal(read(pair)[1], tensors["a.weight"])


def test_special_numbers_come_out_bit_for_bit(tmp_path: Path) -> None:
    values = torch.tensor([[float("nan"), float("inf"), -0.0, 1e-40]])
    one, other = save(tmp_path / "a", {"a": values}), save(tmp_path / "b", {"a": values})
    with open_checkpoint(one) as base, open_checkpoint(other) as finetune:
        (pair,) = pair_checkpoints(base, finetune).pairs
        assert torch.equal(read(pair)[0].view(torch.int32), values.view(torch.int32))


def test_the_buffers_are_the_same_at_every_step(two: tuple[Path, Path]) -> None:
    with open_checkpoint(two[0]) as base, open_checkpoint(two[1]) as finetune:
        pair = pair_checkpoints(base, finetune).pairs[0]
        places = {(a.data_ptr(), b.data_ptr()) for _, a, b in read_chunks(pair.base, pair.finetune, entries=16)}
    assert len(places) == 1


def test_first_rows_and_sizes_follow_from_the_number_of_entries(two: tuple[Path, Path]) -> None:
    with open_checkpoint(two[0]) as base, open_checkpoint(two[1]) as finetune:
        (pair,) = (
            p for p in pair_checkpoints(base, finetune).pairs if p.name.endswith("layers.0.self_attn.q_proj.weight")
        )
        steps = [(first, tuple(a.shape)) for first, a, _ in read_chunks(pair.base, pair.finetune, entries=100)]
    assert steps == [(0, (6, 16)), (6, (6, 16)), (12, (4, 16))]


def test_shapes_must_agree(two: tuple[Path, Path]) -> None:
    with open_checkpoint(two[0]) as base, open_checkpoint(two[1]) as finetune:
        one, other = itertools.islice(pair_checkpoints(base, finetune).pairs, 2)
        with pytest.raises(ValueError, match="shapes differ"):
            next(read_chunks(one.base, other.finetune))


def test_a_file_that_became_shorter_is_unreadable(two: tuple[Path, Path]) -> None:
    with open_checkpoint(two[0]) as base, open_checkpoint(two[1]) as finetune:
        plan = pair_checkpoints(base, finetune)
        for file in two[1].glob("*.safetensors"):
            os.truncate(file, 1000)
        with pytest.raises(CheckpointError, match="became shorter") as caught:
            read(plan.pairs[-1])
    assert caught.value.slug == "unreadable"


def test_a_deleted_file_is_unreadable(two: tuple[Path, Path]) -> None:
    source = LocalSource(two[0], ["model-00001-of-00002.safetensors"])
    (two[0] / "model-00001-of-00002.safetensors").unlink()
    with refused("unreadable", CheckpointError):
        source.read_into("model-00001-of-00002.safetensors", 0, memoryview(bytearray(4)))
    source.prefetch("model-00001-of-00002.safetensors", 0, 4)
    source.close()


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)))
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: whole(fd, [buffers[0][:7]], at))
    source = LocalSource(tmp_path, ["x"])
    buffer = bytearray(200)
    source.read_into("x", 20, memoryview(buffer))
    source.close()
    assert bytes(range(20, 220)) == bytes(buffer)


def test_without_positioned_reads_the_same_bytes_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems that have neither preadv nor posix_fadvise; four threads share the file's position."""
    content = os.urandom(100_000)
    (tmp_path / "x").write_bytes(content)
    monkeypatch.delattr(os, "preadv")
    monkeypatch.delattr(os, "posix_fadvise")
    source = LocalSource(tmp_path, ["x"])

    def is_right(number: int) -> bool:
        start = number * 977 % 90_000
        buffer = bytearray(5000)
        source.read_into("x", start, memoryview(buffer))
        return bytes(buffer) == content[start : start + 5000]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, range(400)))
    source.prefetch("x", 0, 10)
    source.close()


def test_more_files_than_stay_open_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltarank.checkpoints.source.MAX_OPEN_FILES", 2)
    names = [f"{i}.bin" for i in range(8)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    before = _open_files()
    source = LocalSource(tmp_path, names)
    for name in names * 2:
        buffer = bytearray(len(name))
        source.prefetch(name, 0, 1)
        source.read_into(name, 0, memoryview(buffer))
        assert name.encode() == bytes(buffer)
    assert _open_files() <= before + 2
    source.close()
    source.close()
    assert _open_files() == before


def test_a_forgotten_source_closes_its_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    source = LocalSource(tmp_path, ["x"])
    source.read_into("x", 0, memoryview(bytearray(3)))
    descriptors = source._open
    del source
    assert descriptors == {}


def test_reading_allocates_two_buffers(tmp_path: Path) -> None:
    tensors = {"a": numbers(2048, 512)}
    one, other = save(tmp_path / "a", tensors), save(tmp_path / "b", tensors)
    with open_checkpoint(one) as base, open_checkpoint(other) as finetune:
        (pair,) = pair_checkpoints(base, finetune).pairs
        tracemalloc.start()
        for _ in read_chunks(pair.base, pair.finetune, entries=4096):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 200_000


def _resident(kind: str) -> int:
    """Bytes of this process's memory that are pages of files ("RssFile") or its own ("RssAnon")."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    return 0


def _read(pair: Pair) -> None:
    for _ in read_chunks(pair.base, pair.finetune):
        pass


@pytest.mark.skipif(not _resident("RssFile"), reason="the system does not tell")
def test_reading_a_large_pair_takes_little_memory(tmp_path: Path) -> None:
    """A memory map of the same file does not: its pages count as ours, and a job with a memory limit dies of them."""
    tensors = {f"layers.{i}.w.weight": torch.zeros(2048, 1024, dtype=torch.bfloat16) + i for i in range(12)}
    folders = [save(tmp_path / side, tensors) for side in ("a", "b")]
    whole = (folders[0] / "model.safetensors").stat().st_size
    with open_checkpoint(folders[0]) as base, open_checkpoint(folders[1]) as finetune:
        first, *others = pair_checkpoints(base, finetune).pairs
        _read(first)  # the buffers, which come and go, and whatever a first read brings
        before = {kind: _resident(kind) for kind in ("RssFile", "RssAnon")}
        for pair in others:
            _read(pair)
        grown = {kind: _resident(kind) - before[kind] for kind in before}
    assert grown["RssFile"] < whole / 20
    assert grown["RssAnon"] < whole / 4
    with (
        (folders[0] / "model.safetensors").open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view,
    ):
        assert sum(view[::4096]) >= 0
        assert _resident("RssFile") - before["RssFile"] > whole / 2


@pytest.fixture
def prefetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(start, length) of what is prefetched from now on."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(LocalSource, "prefetch", lambda self, file, start, length: ranges.append((start, length)))
    return ranges


def test_the_next_pairs_are_prefetched_before_the_first_is_computed(
    two: tuple[Path, Path], prefetched: list[tuple[int, int]]
) -> None:
    """So the disk, or the network, works while a solver does."""
    with open_checkpoint(two[0]) as base, open_checkpoint(two[1]) as finetune:
        pairs = pair_checkpoints(base, finetune).pairs
        prefetched.clear()
        prefetcher = Prefetcher(pairs)
        prefetcher.reached(0, at_least=2)
        assert {(pair.base.start, pair.base.nbytes) for pair in pairs[:3]} <= set(prefetched)
        for index in range(1, len(pairs)):
            prefetcher.reached(index)
    assert len(prefetched) == 2 * len(pairs)  # each side of each pair, once


@pytest.mark.parametrize("limit", [0, 1000, 10**9])
def test_prefetched_pairs_fit_the_limit(
    limit: int, two: tuple[Path, Path], prefetched: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltarank.checkpoints.chunks.PREFETCH_BYTES", limit)
    with open_checkpoint(two[0]) as base, open_checkpoint(two[1]) as finetune:
        pairs = pair_checkpoints(base, finetune).pairs
        prefetched.clear()
        Prefetcher(pairs).reached(0)
    assert len(prefetched) >= 4
    assert sum(length for _, length in prefetched) - pairs[0].nbytes <= limit + 2 * max(pair.nbytes for pair in pairs)
