"""The folder of a run: complete records survive, and two runs are not mixed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deltarank.errors import OutputError
from deltarank.runtime import RunFolder, differences, read_identity
from refusals import refused

RECORDS = [{"name": "a", "energy": 1.5}, {"name": "b", "energy": None}]


def opened(folder: Path, identity: dict[str, object], *, force: bool = False) -> list[object]:
    with RunFolder(folder, identity) as run:
        return list(run.open(force=force, needed_bytes=0.0))


def begun(folder: Path, identity: dict[str, object]) -> None:
    with RunFolder(folder, identity) as run:
        assert run.open(force=False, needed_bytes=0.0) == []
        for record in RECORDS:
            run.append(record)


def test_records_are_found_again_up_to_the_first_incomplete_line(tmp_path: Path) -> None:
    begun(tmp_path / "run", {"ranks": [8]})
    with (tmp_path / "run" / "matrices.jsonl").open("ab") as file:
        file.write(b'{"name": "torn')

    assert opened(tmp_path / "run", {"ranks": [8]}) == RECORDS
    assert opened(tmp_path / "run", {"ranks": [8]}) == RECORDS  # and the incomplete line is gone


def test_other_options_are_refused_by_name_and_force_starts_anew(tmp_path: Path) -> None:
    begun(tmp_path / "run", {"settings": {"ranks": [8, 16]}})
    with refused("run-differs", OutputError, match="ranks: 8 and 16 in that run, 8 now"):
        opened(tmp_path / "run", {"settings": {"ranks": [8]}})

    assert opened(tmp_path / "run", {"settings": {"ranks": [8]}}, force=True) == []


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with refused("output-exists", OutputError, match=r"thesis\.tex"):
        opened(tmp_path, {})

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_was_killed_in_its_first_write_can_be_begun_again(tmp_path: Path) -> None:
    code = "import os, sys; from deltarank.system import write_atomically\n"
    code += "with write_atomically(sys.argv[1]) as partial: partial.write_text('{'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "run.json"]).returncode == -9
    assert len([*tmp_path.iterdir()]) == 1

    begun(tmp_path, {"ranks": [8]})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["matrices.jsonl", "run.json"]


@pytest.mark.parametrize("force", [False, True])
def test_one_process_at_a_time(tmp_path: Path, force: bool) -> None:
    with RunFolder(tmp_path / "run", {}) as first:
        first.open(force=False, needed_bytes=0.0)
        with pytest.raises(OutputError) as caught:
            opened(tmp_path / "run", {}, force=force)

    assert caught.value.slug == "output-busy"
    assert opened(tmp_path / "run", {}) == []


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}) as run, pytest.raises(OutputError, match="Not enough disk space") as caught:
        run.open(force=False, needed_bytes=1e18)

    assert caught.value.slug == "output-unwritable"
    assert "is kept" not in str(caught.value.cure)


def test_on_a_disk_that_is_too_small_earlier_work_is_kept_and_it_is_said_how_to_go_on(tmp_path: Path) -> None:
    begun(tmp_path / "run", {"ranks": [8]})
    with RunFolder(tmp_path / "run", {"ranks": [8]}) as run, pytest.raises(OutputError) as caught:
        run.open(force=False, needed_bytes=1e18)

    assert "is kept" in str(caught.value.cure)
    assert "the same command resumes it" in str(caught.value.cure)
    assert opened(tmp_path / "run", {"ranks": [8]}) == RECORDS


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_an_invalid_run_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(OutputError):
        opened(tmp_path, {"ranks": [8]})

    assert read_identity(tmp_path / "nowhere") is None


def test_differences_are_listed_in_words() -> None:
    before = {"base": "x", "settings": {"rank": 8}, "given": {"texts": "hash"}, "tool_version": "1"}
    after = {"base": "y", "settings": {"rank": 16}, "given": {"texts": "other"}, "tool_version": "1"}

    assert differences(before, after) == ["the base changed", "the texts changed", "rank: 8 in that run, 16 now"]
    assert json.dumps(differences([], {}))


def test_calibration_texts_of_one_run_alone_are_one_difference() -> None:
    weighted = {"given": {"calibration text": "hash"}, "calibration": {"tokens": 4096}}

    assert differences({}, {}) == ["its run.json cannot be read"]
    assert differences({"base": "x"}, {"base": "x", **weighted}) == ["calibration texts: none in that run, some now"]
    assert differences({"base": "x", **weighted}, {"base": "x"}) == ["calibration texts: some in that run, none now"]


def test_a_run_json_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "run.json").mkdir()
    with RunFolder(tmp_path, {}) as run, pytest.raises(OutputError) as caught:
        _ = run.finished

    assert caught.value.slug == "output-unwritable"
