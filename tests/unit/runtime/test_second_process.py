"""Work in a second process."""

import os
import time
from pathlib import Path

import pytest
import torch

from deltarank.errors import JobError, OutputError
from deltarank.runtime import work_beside
from refusals import refused


def write_threads(path: Path) -> None:
    path.write_text(f"{os.getpid()} {torch.get_num_threads()}")


def fail() -> None:
    raise OutputError("The disk is full.", cure="Free some space.", slug="output-unwritable")


def die() -> None:
    os._exit(3)


def wait_for(path: Path) -> None:
    path.touch()
    time.sleep(600)


def test_both_processes_work_with_half_of_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with work_beside(write_threads, tmp_path / "seen"):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    process, threads = (tmp_path / "seen").read_text().split()

    assert int(process) != os.getpid()
    assert threads == "2"


def test_an_error_of_the_other_process_is_raised_here_with_its_cure() -> None:
    with refused("output-unwritable", OutputError, match="disk is full"), work_beside(fail):
        pass


def test_a_process_that_dies_is_reported() -> None:
    with refused("process-died", JobError), work_beside(die):
        pass


def test_an_error_in_this_process_ends_the_other(tmp_path: Path) -> None:
    def stop() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), work_beside(wait_for, tmp_path / "begun"):
        stop()
