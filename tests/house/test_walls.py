"""Who may import what: a room per heavy dependency, and traffic in one direction."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "deltarank"
MODULES = sorted(SOURCE.rglob("*.py"))

# Outside packages that a room may import; the standard library is free to all.
OUTSIDE = {
    "errors": set(),
    "words": set(),
    "_typed": set(),
    "results": set(),
    "behaviour_results": set(),
    "__init__": set(),
    "__main__": set(),
    "cli": {"click", "tqdm"},
    # gguf: its table of names and its decoding of ggml's types, once a GGUF file is opened
    "checkpoints": {"torch", "numpy", "huggingface_hub", "hf_xet", "safetensors", "gguf"},
    "spectra": {"torch", "numpy", "scipy"},
    "adapters": {"torch", "numpy"},
    "behaviour": {
        "torch",
        "transformers",
        "accelerate",
        "safetensors",
        "numpy",
        "scipy",
        "sklearn",
        "gguf",
        "bitsandbytes",
    },
    "report": {"vl_convert", "jinja2", "markupsafe", "numpy"},
    "demo": {"torch", "transformers", "peft", "tokenizers", "safetensors", "tqdm"},
}
# Rooms of our own that a room may import. `results` shows itself in a notebook, so it knows the report by name.
INSIDE = {
    "errors": set(),
    "words": set(),
    "_typed": set(),
    "results": {"_typed", "errors", "words", "report", "behaviour_results"},
    "behaviour_results": {"errors", "words"},
    "__main__": {"cli"},
    "checkpoints": {"errors", "words", "results"},
    "spectra": {"errors", "words", "results"},
    "adapters": {"errors", "words", "results", "checkpoints"},
    "behaviour": {"errors", "words", "results", "_quiet", "behaviour_results", "checkpoints"},
    "report": {"errors", "words", "results", "behaviour_results"},
    "demo": {"errors", "words", "results", "behaviour_results", "_quiet", "_threads"},
}
LOOP_OUTSIDE = {"torch", "numpy"}
LOOP_INSIDE_NOT = {"cli", "report", "demo"}
"""A module beside the rooms (`compare.py`) joins rooms in a loop: it prints nothing and draws nothing."""

HEAVY = ("torch", "transformers", "peft", "altair", "vl_convert", "huggingface_hub", "numpy", "scipy", "sklearn")


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that is named in an import, wherever it stands, less those for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unread = {id(n) for node in ast.walk(tree) if _for_types_only(node) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides which room it enters"
            if node.module == "deltarank":
                yield from ((f"deltarank.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module or "", node.lineno


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def own(name: str) -> bool:
    return name == "deltarank" or name.startswith("deltarank.")


def shown(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_a_room_imports_only_its_own_heavy_dependency(path: Path) -> None:
    allowed = OUTSIDE.get(room_of(path), LOOP_OUTSIDE)
    strangers = {
        f"line {line}: {name}"
        for name, line in imports(path)
        if not own(name) and (top := name.split(".")[0]) not in sys.stdlib_module_names and top not in allowed
    }

    assert strangers == set()


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_traffic_between_rooms_goes_one_way(path: Path) -> None:
    room = room_of(path)
    if room in ("cli", "__init__"):
        return  # the doorway and the front open every room
    entered = {(_room_entered(name), line) for name, line in imports(path) if own(name)}
    wrong = {(name, line) for name, line in entered if name != room and not _may_enter(room, name)}

    assert wrong == set()


def _room_entered(name: str) -> str:
    return [*name.split("."), ""][1]


def _may_enter(room: str, other: str) -> bool:
    if other == "__version__":
        return True
    return other in INSIDE[room] if room in INSIDE else other not in {*LOOP_INSIDE_NOT, ""}


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_a_private_module_is_imported_only_in_its_room(path: Path) -> None:
    room = room_of(path)
    trespasses = {
        f"line {line}: {name}"
        for name, line in imports(path)
        if name.startswith("deltarank.") and any(part.startswith("_") for part in name.split(".")[2:])
        if name.split(".")[1] != room
    }

    assert trespasses == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compare", "--help"], ["demo", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from deltarank.cli import main; code = main(sys.argv[1:]); "
        f"print('loaded:', *(name for name in {HEAVY!r} if name in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, deltarank; dir(deltarank); print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout.strip()) == (0, "")


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="no account of a child's time here")
def test_help_takes_under_300_ms_of_processor_time() -> None:
    def seconds() -> float:
        child = subprocess.Popen([sys.executable, "-m", "deltarank", "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3
