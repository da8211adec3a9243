"""A pickled source is a reference to its files. See `quantised.decoded` for that of each format."""

import pickle
from pathlib import Path

import pytest
import torch

from deltarank.checkpoints import LocalSource, SharedSource
from deltarank.errors import CheckpointError

CONTENT = bytes(range(200))


def read(source: LocalSource | SharedSource) -> bytes:
    buffer = bytearray(100)
    source.read_into("x", 50, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture
def source(tmp_path: Path) -> LocalSource:
    (tmp_path / "x").write_bytes(CONTENT)
    return LocalSource(tmp_path, ["x"])


def test_it_reads_the_same_bytes(source: LocalSource) -> None:
    expected = read(source)

    for each in (source, SharedSource(source)):
        pickled = pickle.dumps(each)
        assert CONTENT[50:60] not in pickled
        assert read(pickle.loads(pickled)) == expected


def test_a_shared_source_counts_what_was_read_elsewhere(source: LocalSource) -> None:
    shared = SharedSource(source)
    other = pickle.loads(pickle.dumps(shared))
    read(other)
    shared.count_elsewhere(other.bytes_read)

    assert shared.bytes_read == 100


def test_a_file_that_is_gone_or_another_is_refused(source: LocalSource, tmp_path: Path) -> None:
    pickled = pickle.dumps(source)
    (tmp_path / "x").write_bytes(CONTENT + b"more")
    with pytest.raises(CheckpointError, match="its size or its time differs from that of the file"):
        pickle.loads(pickled)
    (tmp_path / "x").unlink()
    with pytest.raises(CheckpointError, match="Cannot read"):
        pickle.loads(pickled)


def test_torch_tensors_of_a_task_do_not_carry_their_storage() -> None:
    """What own_copy returns is pickled as itself, not as the buffer that it was a part of."""
    from deltarank.adapters import own_copy

    part = torch.zeros(1000, 1000)[:2]
    assert len(pickle.dumps(own_copy(part))) < 10_000
