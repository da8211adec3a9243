"""The library's front: few names, sorted, each importable, each documented."""

import importlib
from pathlib import Path

import pytest

import deltarank

ROOT = Path(__file__).parents[2]


def test_all_is_sorted() -> None:
    assert sorted(deltarank.__all__) == deltarank.__all__


@pytest.mark.parametrize("name", deltarank.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(deltarank, name) is not None
    assert name in dir(deltarank)


@pytest.mark.parametrize("name", deltarank.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert f"`{name}" in (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No deltarank attribute extrct"):
        deltarank.extrct  # noqa: B018


ROOMS = sorted(path.parent.name for path in (ROOT / "src" / "deltarank").glob("*/__init__.py"))


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "jobs"])
def test_every_room_names_what_it_offers(room: str) -> None:
    module = importlib.import_module(f"deltarank.{room}")

    assert all(hasattr(module, name) for name in module.__all__)


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src" / "deltarank" / "py.typed").is_file()
