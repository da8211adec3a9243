"""Parts of the command line: names of runs, printing and importing."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltarank.cli.run_command import default_output
from deltarank.cli.streams import out, printable


@pytest.mark.parametrize(
    ("finetune", "name"),
    [
        ("org/Bigger-Body-12b", "org--Bigger-Body-12b"),
        ("org/name@v1.0", "org--name--v1.0"),
        ("hf://org/name", "org--name"),
        ("https://huggingface.co/org/name/tree/v1.0", "org--name--v1.0"),
        ("hf.co/org/name/", "org--name"),
        ("org/..", "org"),
        ("a b/c;d", "a-b--c-d"),
        ("..", None),
    ],
)
def test_a_run_is_named_after_its_finetune(
    finetune: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")

    assert default_output(finetune) == Path("runs", name or tmp_path.name)


def test_a_run_is_named_after_a_folder_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tuned-1.5b").mkdir()
    (tmp_path / "epoch.3.safetensors").touch()
    monkeypatch.chdir(tmp_path / "tuned-1.5b")

    assert default_output(".") == Path("runs/tuned-1.5b")
    assert default_output("../tuned-1.5b/") == Path("runs/tuned-1.5b")
    assert default_output("../epoch.3.safetensors") == Path("runs/epoch.3")


@pytest.mark.parametrize("name", ["model", "merged", "checkpoint-500", "final_model", "0f" * 20, "hf_model", "epoch_3"])
def test_a_generic_name_is_preceded_by_the_folder_above(name: str, tmp_path: Path) -> None:
    for trainer in ("one", "other"):
        (tmp_path / trainer / name).mkdir(parents=True)
        (tmp_path / trainer / name / "model.safetensors").touch()

    assert default_output(str(tmp_path / "one" / name)) == Path("runs", f"one--{name}")
    assert default_output(str(tmp_path / "other" / name / "model.safetensors")) == Path("runs", f"other--{name}--model")


@given(st.text())
def test_the_name_of_a_run_stays_in_its_folder(finetune: str) -> None:
    path = default_output("org/" + finetune)

    assert path.parent == Path("runs")
    assert path.name not in ("", ".", "..")


@given(st.text())
def test_nothing_printed_moves_the_cursor(text: str) -> None:
    assert all(c.isprintable() or c == "\n" for c in printable(text))


def test_ordinary_text_is_printed_as_it_is() -> None:
    assert printable("Größe: 48 % – naïve\n") == "Größe: 48 % – naïve\n"


def test_signs_that_stdout_cannot_write_are_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as narrow:
        monkeypatch.setattr("sys.stdout", narrow)
        out("over 99.9 % – kept")

    assert (tmp_path / "out").read_text() == "over 99.9 % ? kept\n"


COLLECTS = """
import gc, sys, weakref
from deltarank.cli.loading import loading

class Ring: pass

try:
    with loading():
        assert not gc.isenabled()
        if sys.argv[1] == "fails": raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
assert gc.isenabled()
ring = Ring()
ring.itself, seen = ring, weakref.ref(ring)
del ring
gc.collect()
assert seen() is None
"""


@pytest.mark.parametrize("how", ["loads", "fails"])
def test_the_collector_works_again_after_loading(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTS, how], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")


SWALLOWS = """
import signal
from deltarank.cli.loading import loading

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with loading():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        print("went on")
except KeyboardInterrupt:
    print("stopped", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_ctrl_c_is_not_lost_in_an_import_that_swallows_it() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWS], capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("went on\nstopped True\n", "")
