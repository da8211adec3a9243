"""A calibration that is killed with SIGKILL in each of its stages, again and again, and then finished."""

import os
import signal
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
from trained_pair import calibrate, write_models

from deltarank.jobs.calibrate import distill, schedule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the process is forked, so that libraries are imported once"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]

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
    process = os.fork()
    if not process:
        threading.Thread(target=kill_when, args=(output.with_name(output.name + ".calibrating"), pattern)).start()
        try:
            calibrate(home, output, **OPTIONS)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def kill_when(folder: Path, pattern: str) -> None:
    while not any(folder.glob(pattern)):
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)


def test_it_goes_on_after_each_and_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a kill between two looks: the state that is stored then is the whole state."""
    (tmp_path / "models").mkdir()
    models = write_models(tmp_path / "models")
    monkeypatch.setattr(distill, "SAVE_SECONDS", 0.0)
    for stage, pattern in STAGES.items():
        assert killed_at(pattern, models, tmp_path / "killed"), stage
        assert not (tmp_path / "killed").exists(), stage
        if stage == "steps":
            made = torch.load(tmp_path / "killed.calibrating/training.pt", weights_only=True)["made"]
            assert 1 <= made < OPTIONS["steps"] * schedule.LOOKS[0], "it was killed before the first look"
    calibrate(models, tmp_path / "killed", **OPTIONS)
    monkeypatch.undo()
    calibrate(models, tmp_path / "whole", **OPTIONS)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "models", "whole"]
