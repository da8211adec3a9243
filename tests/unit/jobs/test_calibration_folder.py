"""The working folder of a calibration: what another calibration left in it."""

from pathlib import Path

from deltarank.jobs.calibrate.calibration_folder import CalibrationFolder
from refusals import refused


def calibration(output: Path, *texts: str) -> CalibrationFolder:
    return CalibrationFolder(output, {"settings": {"calibrate": list(texts)}, "given": {"texts": repr(texts)}})


def begin(folder: CalibrationFolder) -> None:
    """As by a process that is killed when the folder is open."""
    folder.open(force=False, needed_bytes=0.0)
    folder._run_folder.__exit__()


def test_one_that_computed_nothing_does_not_block_another(tmp_path: Path) -> None:
    begin(calibration(tmp_path / "adapter", "own"))
    calibration(tmp_path / "adapter", "files").check(force=False, needed_bytes=0.0)
    begin(calibration(tmp_path / "adapter", "files"))
    calibration(tmp_path / "adapter", "files").check(force=False, needed_bytes=0.0)


def test_one_with_answers_blocks_another_and_says_in_words_what_differs(tmp_path: Path) -> None:
    own = calibration(tmp_path / "adapter", "own")
    begin(own)
    own.own_answers.mkdir()
    (own.own_answers / "0000.jsonl").touch()
    with refused("run-differs", match="the texts changed and calibrate: own in that run, files now") as caught:
        calibration(tmp_path / "adapter", "files").check(force=False, needed_bytes=0.0)
    assert "--force" in caught.value.cure


def test_what_is_no_calibration_is_not_touched(tmp_path: Path) -> None:
    folder = calibration(tmp_path / "adapter", "own")
    folder.folder.mkdir()
    (folder.folder / "notes.txt").touch()
    with refused("output-exists"):
        folder.check(force=False, needed_bytes=0.0)
