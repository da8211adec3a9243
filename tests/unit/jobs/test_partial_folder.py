"""The folder of an unfinished job."""

from pathlib import Path

from deltarank.jobs.outputs.partial_folder import PartialFolder


def test_files_of_others_are_not_removed(tmp_path: Path) -> None:
    folder = PartialFolder(tmp_path / "outputs.partial")
    for file in (folder.factors(3), folder.reference / "head.pt", folder.scores(1, 2), folder.path / "run.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert folder.has_scores

    (folder.path / "notes.txt").write_text("mine")
    folder.remove()
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]
    (folder.path / "notes.txt").unlink()
    folder.remove()
    assert not folder.path.exists()
