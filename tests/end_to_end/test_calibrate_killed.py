"""A calibration that is killed with SIGKILL in each of its stages, again and again, and then finished."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from trained_pair import calibrate, write_models

from deltarank.jobs.calibrate import distill, schedule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "forkserver" not in multiprocessing.get_all_start_methods(), reason="needs processes of a server"
    ),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

if "forkserver" in multiprocessing.get_all_start_methods():
    PROCESSES = multiprocessing.get_context("forkserver")
    PROCESSES.set_forkserver_preload(["trained_pair"])
    """Imported once, in a process that computes nothing: torch's threads do not survive a fork."""

OPTIONS = {"calibrate": ["own"], "calibration_tokens": 2000, "steps": 30}

STAGES = {
    "own answers": "own-answers/0000.jsonl",
    "plain extraction": "adapters/plain*/*",
    "the finetune's predictions": "teacher/000003.safetensors",
    "steps": "training.pt",
    "scoring": "scores/adapters/scores-001/*",
}
"""A file that appears in the working folder during the stage."""


def killed_at(pattern: str, home: Path, output: Path) -> bool:
    """Runs a calibration in another process, which is killed when the file appears."""
    process = PROCESSES.Process(target=calibrate_until, args=(pattern, home, output))
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def calibrate_until(pattern: str, home: Path, output: Path) -> None:
    distill.SAVE_SECONDS = 0.0
    working = output.with_name(output.name + ".calibrating")
    threading.Thread(target=kill_when, args=(working, pattern), daemon=True).start()
    calibrate(home, output, **OPTIONS)


def kill_when(folder: Path, pattern: str) -> None:
    while not any(folder.glob(pattern)):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)


def test_it_goes_on_after_each_and_writes_the_same_bytes(tmp_path: Path) -> None:
    """Also after a kill between two looks: the state that is stored then is the whole state."""
    (tmp_path / "models").mkdir()
    models = write_models(tmp_path / "models")
    for stage, pattern in STAGES.items():
        assert killed_at(pattern, models, tmp_path / "killed"), stage
        assert not (tmp_path / "killed").exists(), stage
        if stage == "steps":
            made = torch.load(tmp_path / "killed.calibrating/training.pt", weights_only=True)["made"]
            assert 1 <= made < OPTIONS["steps"] * schedule.LOOKS[0], "it was killed before the first look"
    calibrate(models, tmp_path / "killed", **OPTIONS)
    calibrate(models, tmp_path / "whole", **OPTIONS)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "models", "whole"]
