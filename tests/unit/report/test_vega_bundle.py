"""The script under the charts: made once, kept, and made again if what was kept is not what was made."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from deltarank.report import report_process
from deltarank.report.drawing import vega_bundle as module
from deltarank.report.drawing.draw import _current


@dataclass(frozen=True)
class Made:
    """The script, and the folder where it was kept."""

    script: str
    folder: Path


@pytest.fixture(scope="module")
def made(drawing: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Made once for these tests, in two seconds, by the drawing process of all tests."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        return Made(again(), home / "deltarank")


@pytest.fixture
def cache_home(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def kept(made: Made, cache_home: Path) -> Path:
    """The file in which the script is kept."""
    (file,) = shutil.copytree(made.folder, cache_home / "deltarank").iterdir()
    return file


def again() -> str:
    """What a process that starts now has for its script."""
    module.vega_bundle.cache_clear()
    try:
        return module.vega_bundle()
    finally:
        module.vega_bundle.cache_clear()


def test_the_bundle_is_cached_and_read_back_equal(made: Made, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_make", lambda: pytest.fail("made twice"))

    assert again() == made.script
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("damage", [b"", b"// 00\nalert(1)"])
def test_a_damaged_bundle_is_built_again(made: Made, kept: Path, damage: bytes) -> None:
    kept.write_bytes(damage)

    assert again() == made.script
    assert kept.read_bytes() != damage


def test_a_folder_that_cannot_be_written_costs_time_only(made: Made, cache_home: Path) -> None:
    (cache_home / "deltarank").write_text("in the way")

    assert again() == made.script


def test_a_helper_makes_the_same(made: Made, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.unlink()
    with monkeypatch.context() as patch, report_process():
        patch.setattr(module, "_make_here", lambda: pytest.fail("made here"))
        assert again() == made.script

    assert kept.exists()


def test_a_helper_that_dies_over_it_is_not_missed(made: Made, kept: Path, no_drawing_process: None) -> None:
    kept.unlink()
    with report_process():
        _current()._process.kill()
        assert again() == made.script


def test_it_cannot_end_its_element(made: Made) -> None:
    assert "</script" not in made.script
    assert "<!--" not in made.script
