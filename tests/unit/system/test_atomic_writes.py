"""Files and folders that appear whole or not at all."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from deltarank.system import replace_folder, write_atomically, write_text_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with write_atomically(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"

    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with write_atomically(target) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()

    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_text_is_written_in_utf8(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "a.txt", "é\n")

    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"


def test_two_writers_share_no_partial_file(tmp_path: Path) -> None:
    """A file that another writer is half way through is never the one that takes the place."""
    barrier = Barrier(4)

    def write(text: str) -> None:
        with write_atomically(tmp_path / "a.txt") as partial:
            barrier.wait(timeout=30)
            partial.write_text(text * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))

    assert len(set((tmp_path / "a.txt").read_text())) == 1
    assert names(tmp_path) == ["a.txt"]


def made(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / text).touch()
    return folder


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    target, new = made(tmp_path / "target", "old"), made(tmp_path / "new", "new")
    replace_folder(new, target)

    assert names(target) == ["new"]
    assert names(tmp_path) == ["target"]


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path: Path) -> None:
    target = made(tmp_path / "target", "old")
    with pytest.raises(OSError, match="missing"):
        replace_folder(tmp_path / "missing", target)

    assert names(target) == ["old"]
    assert names(tmp_path) == ["target"]
