"""The results from which the site makes the gallery's reports can be read, and name no folder of the machine."""

import lzma
import re
from pathlib import Path

import pytest

from deltarank.results import EndpointResults, Fleet, Results, StoredResult

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
STORED = sorted(GALLERY.rglob("*.json.xz"))
KINDS: dict[str, type[StoredResult]] = {
    "fleet": Fleet,
    "endpoints": EndpointResults,
    "identification": EndpointResults,
}


def test_each_entry_of_the_gallery_has_results_and_a_link() -> None:
    page = (GALLERY.parent / "gallery.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"deltarank\.github\.io/deltarank/gallery/(\w+)\.html", page))

    assert (
        linked
        == {path.parent.name for path in STORED}
        == {
            "demo",
            "rxnfp",
            "smollm2",
            "fleet",
            "endpoints",
            "identification",
        }
    )


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_results_can_be_read_and_shown(path: Path) -> None:
    text = lzma.decompress(path.read_bytes()).decode()
    results = KINDS.get(path.parent.name, Results).from_json(text)

    assert "<p" in results._repr_html_()  # type: ignore[attr-defined]
    assert re.search(r'"(?:/|[A-Z]:)\w+/', text) is None
