"""This folder goes on the path of all tests, so that they share `hub.py`. What every test is run under."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from commands import Finished, RunCommand
from deltarank.cli import main

# Two workers share two cores (see pyproject.toml): a second thread each would only wait for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same cases in every run, so that a failure is of the change at hand. HYPOTHESIS_PROFILE=random draws others.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Runs `deltarank` with these words in this process."""

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
