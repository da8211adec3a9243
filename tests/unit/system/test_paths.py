"""`~` in paths, and the nearest name of a path that does not exist."""

import sys
from pathlib import Path

import pytest

from deltarank.system import expand_home, nearest_path, nearest_path_in_words, user_path


def test_a_tilde_is_the_home_folder_only_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert user_path("~/run") == user_path(Path("~/run")) == tmp_path / "run"
    assert expand_home("~") == str(tmp_path)
    assert [expand_home(same) for same in ("a/~", "org/name/", "~nobody-here/x", "")] == [
        "a/~",
        "org/name/",
        "~nobody-here/x",
        "",
    ]
    assert expand_home(None) is None


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("models/finetun", "models/finetune"),
        ("model/finetune", "models/finetune"),
        ("modls/finetuned", "models/finetune"),
        ("Models", "models"),
        ("models/finetune/model.safetensor", "models/finetune/model.safetensors"),
        ("models/finetune/model.safetensors/x", "models/finetune/model.safetensors"),
        ("something-else", None),
        ("a\0b", None),
    ],
)
def test_the_nearest_name(wanted: str, near: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "finetune").mkdir(parents=True)
    (tmp_path / "models" / "finetune" / "model.safetensors").touch()

    assert nearest_path(wanted) == (near and Path(near))
    assert nearest_path(tmp_path / wanted) == (near and tmp_path / near)
    assert nearest_path_in_words(wanted) == (f" Did you mean '{near}'?" if near else "")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_broken_link_is_not_offered_in_place_of_itself(tmp_path: Path) -> None:
    (tmp_path / "text.txt").symlink_to(tmp_path / "gone.txt")

    assert nearest_path(tmp_path / "text.txt") is None
