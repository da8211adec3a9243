"""This folder goes on the path of all tests, so that they share `hub.py`. What every test is run under."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from deltarank.cli import main
from deltarank.report import drawing_process

if TYPE_CHECKING:  # it imports torch, which reads the number of threads below only once
    from commands import Finished, RunCommand

# Two workers share two cores (see pyproject.toml): a second thread each would only wait for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same cases in every run, so that a failure is of the change at hand. HYPOTHESIS_PROFILE=random draws others.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported for collection, torch and all, stays: the garbage collector need not look through it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def drawing() -> Iterator[None]:
    """A drawing process for all tests, which a command shares: its own takes half a second to start."""
    with drawing_process():
        yield


@pytest.fixture
def no_drawing_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what starts one, and ends it, itself."""
    monkeypatch.setattr("deltarank.report.drawing.draw._thread", threading.local())


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], drawing: None) -> RunCommand:
    """Runs `deltarank` with these words in this process."""
    from commands import Finished

    def run(*words: object) -> Finished:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama and its finetune. Not to be written to."""
    from tiny_architectures import DENSE, write_pair

    return write_pair(DENSE["llama"], tmp_path_factory.mktemp("llama"))
