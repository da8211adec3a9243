"""The script under the charts: made once, kept, and made again if what was kept is not what was made."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltarank.report import report_process
from deltarank.report.drawing import vega_bundle as module
from deltarank.report.drawing.draw import _current


@pytest.fixture
def folder(drawing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where it is kept; empty. The drawing process of all tests makes it once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module.vega_bundle.cache_clear()
    yield tmp_path / "deltarank"
    module.vega_bundle.cache_clear()


def again() -> str:
    module.vega_bundle.cache_clear()
    return module.vega_bundle()


def test_the_bundle_is_cached_and_read_back_equal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module.vega_bundle()
    monkeypatch.setattr(module, "_make", lambda: pytest.fail("made twice"))

    assert again() == made
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"// 00\nalert(1)"])
def test_a_damaged_bundle_is_built_again(folder: Path, damage: bytes) -> None:
    made = module.vega_bundle()
    (kept,) = folder.iterdir()
    kept.write_bytes(damage)

    assert again() == made
    assert kept.read_bytes() != damage


def test_a_folder_that_cannot_be_written_costs_time_only(folder: Path) -> None:
    folder.write_text("in the way")

    assert "vega" in module.vega_bundle()


def test_a_helper_makes_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module.vega_bundle()
    (kept,) = folder.iterdir()
    kept.unlink()
    with monkeypatch.context() as patch, report_process():
        patch.setattr(module, "_make_here", lambda: pytest.fail("made here"))
        assert again() == made

    assert kept.exists()


def test_a_helper_that_dies_over_it_is_not_missed(folder: Path, request: pytest.FixtureRequest) -> None:
    made = module.vega_bundle()
    (kept,) = folder.iterdir()
    kept.unlink()
    request.getfixturevalue("no_drawing_process")
    with report_process():
        _current()._process.kill()
        assert again() == made


def test_it_cannot_end_its_element(folder: Path) -> None:
    assert "</script" not in module.vega_bundle()
    assert "<!--" not in module.vega_bundle()
