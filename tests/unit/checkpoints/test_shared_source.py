"""Bytes that several readers want are read once, and kept no longer than the last of them needs."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from deltarank.checkpoints import LocalSource, Piece, SharedSource
from deltarank.errors import CheckpointError

CONTENT = os.urandom(4096)


@pytest.fixture
def shared(tmp_path: Path) -> SharedSource:
    (tmp_path / "x").write_bytes(CONTENT)
    return SharedSource(LocalSource(tmp_path, ["x"]))


def piece(shared: SharedSource, start: int, rows: int, columns: int = 16) -> Piece:
    return Piece("w", "x", start, torch.float32, (rows, columns), shared)


def read(shared: SharedSource, start: int, length: int) -> bytes:
    buffer = bytearray(length)
    shared.read_into("x", start, memoryview(buffer))
    return bytes(buffer)


def test_readers_of_one_piece_cause_one_read(shared: SharedSource) -> None:
    wanted = piece(shared, 64, rows=8)
    shared.expect([wanted] * 50)

    def reads_in_parts(_: int) -> bytes:
        found = b"".join(read(shared, start, 128) for start in range(64, 64 + 512, 128))
        shared.done(wanted)
        return found

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(reads_in_parts, range(50))) == {CONTENT[64 : 64 + 512]}
    assert shared.bytes_read == 512


def test_overlapping_pieces_are_read_together(shared: SharedSource) -> None:
    """A stack of experts that one finetune compares as a whole, and another in parts."""
    parts = [piece(shared, 0, rows=8), piece(shared, 256, rows=4), piece(shared, 1024, rows=2)]
    shared.expect(parts)
    for each in parts:
        assert read(shared, each.start, each.nbytes) == CONTENT[each.start : each.start + each.nbytes]
        shared.done(each)
    assert shared.bytes_read == 512 + 128


def test_what_nobody_announced_is_kept_while_there_is_room(
    shared: SharedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltarank.checkpoints.shared_source.SPARE_BYTES", 100)
    for _ in range(3):
        assert read(shared, 10, 80) == CONTENT[10:90]
        assert read(shared, 500, 80) == CONTENT[500:580]
    assert shared.bytes_read == 80 + 3 * 80

    shared.expect(())
    read(shared, 10, 80)
    assert shared.bytes_read == 80 + 3 * 80 + 80


def test_a_read_that_failed_is_tried_again_by_the_next_reader(shared: SharedSource, tmp_path: Path) -> None:
    wanted = piece(shared, 0, rows=8)
    shared.expect([wanted] * 2)
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(CheckpointError, match="became shorter"):
        read(shared, 0, 512)
    shared.done(wanted)
    (tmp_path / "x").write_bytes(CONTENT)
    assert read(shared, 0, 512) == CONTENT[:512]


def test_a_piece_is_prefetched_once(shared: SharedSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have dropped its bytes when the last reader comes; they are in memory here."""
    hints: list[tuple[int, int]] = []
    monkeypatch.setattr(LocalSource, "prefetch", lambda _, file, start, length: hints.append((start, length)))
    shared.expect([piece(shared, 64, rows=8)] * 2)
    for _ in range(3):
        shared.prefetch("x", 64, 512)
    shared.prefetch("x", 2000, 8)

    assert hints == [(64, 512), (2000, 8)]
