"""Results and journals that were edited, torn, or written by nobody of ours."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import deltarank
from commands import StopAfter
from deltarank.report import page_html, terminal_summary
from deltarank.results import Results, StoredResult
from fuzz.hostile import JSON, as_json, cases, spoilt, survives, torn
from unit.results.whole_results import CHOICE, OUTPUTS, VERIFICATION

RANKS = [1, 4]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("pair")
    generator = torch.Generator().manual_seed(0)
    shapes = {f"model.layers.{i}.mlp.{m}_proj.weight": (12, 9) for i in range(2) for m in ("up", "down")}
    shapes |= {"model.layers.0.input_layernorm.weight": (9,), "lm_head.weight": (20, 9)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for side, scale in (("base", 0.0), ("finetune", 0.01)):
        (home / side).mkdir()
        moved = {name: w + scale * torch.randn(w.shape, generator=generator) for name, w in base.items()}
        save_file(moved, home / side / "model.safetensors")
    return home / "base", home / "finetune"


@pytest.fixture(scope="module")
def run(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Results:
    return deltarank.compare(*pair, ranks=RANKS, audit=1, output=tmp_path_factory.mktemp("run") / "out")


def check_results(text: bytes) -> None:
    """What is believed comes back the same from its own JSON, and can be shown."""
    results = survives(lambda: Results.from_json(text.decode("utf-8", "replace")))
    if results is None:
        return
    assert Results.from_json(results.to_json()) == results
    assert terminal_summary(results, colour=False, width=100)
    json.dumps(results.rows(), allow_nan=False)
    repr(results)


@given(data=st.data())
@cases(200)
def test_edited_results(data: st.DataObject, run: Results) -> None:
    check_results(as_json(data.draw(spoilt(run.to_plain()))))


@given(data=st.data())
@cases(120)
def test_results_with_edited_bytes(data: st.DataObject, run: Results) -> None:
    check_results(data.draw(torn(run.to_json().encode())))


STORED: list[StoredResult] = [OUTPUTS, VERIFICATION, CHOICE]


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: type(stored).__name__)
@given(data=st.data())
@cases(100)
def test_edited_results_of_other_jobs(data: st.DataObject, stored: StoredResult) -> None:
    """What is believed comes back the same from its own JSON."""
    text = as_json(data.draw(spoilt(stored.to_plain())))
    found = survives(lambda: type(stored).from_json(text))
    if found is not None:
        assert type(stored).from_json(found.to_json()) == found


@pytest.mark.slow
@given(data=st.data())
@cases(150)
def test_a_page_of_edited_results(data: st.DataObject, run: Results) -> None:
    """One edit a time, so that many are believed."""
    text = as_json(data.draw(spoilt(run.to_plain())))
    results = survives(lambda: Results.from_json(text.decode()))
    if results is not None:
        assert page_html([results]).startswith("<!doctype html>")


@pytest.fixture(scope="module")
def run_folder(run: Results) -> list[Any]:
    """The lines of a run that died at its end."""
    plain = run.to_plain()
    return [*plain["matrices"], *({k: v for k, v in s.items() if k != "share"} for s in plain["skipped"])]


@given(data=st.data())
@cases(40)
def test_a_run_folder_with_edited_records(
    data: st.DataObject, run: Results, run_folder: list[Any], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Invalid lines are measured again: a resumed run ends, with a result for every matrix."""
    lines = data.draw(spoilt(run_folder))
    text = b"\n".join(map(as_json, lines)) + b"\n" if isinstance(lines, list) else as_json(lines)
    out = resumable(tmp_path, pair, data.draw(st.just(text) | torn(text)))
    found = survives(lambda: deltarank.compare(*pair, ranks=RANKS, output=out))

    assert found is not None
    assert [m.name for m in found.matrices] == [m.name for m in run.matrices]
    check_results(found.to_json().encode())


@given(text=JSON.map(as_json) | st.binary(max_size=40) | st.sampled_from([b"[" * 100_000, b'{"base": [' * 500]))
@cases(40)
def test_a_run_folder_with_another_run_json(text: bytes, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Told from ours, and left alone."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    (out / "run.json").write_bytes(text)

    assert survives(lambda: deltarank.compare(*pair, ranks=RANKS, output=out)) is None
    assert (out / "run.json").read_bytes() == text


def resumable(tmp_path: Path, pair: tuple[Path, Path], lines: bytes) -> Path:
    """The folder of this very run, as a killed process left it, with these lines."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    if not whole.exists():
        deltarank.compare(*pair, ranks=RANKS, output=whole)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    shutil.copy(whole / "run.json", out / "run.json")
    (out / "matrices.jsonl").write_bytes(lines)
    return out


@given(data=st.data())
@cases(20)
def test_a_run_folder_of_an_extraction_with_edited_records(
    data: st.DataObject, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """As above; factors whose file is gone are made again."""
    out, ours = tmp_path / "adapter", tmp_path / "adapter.partial"
    if not (kept := tmp_path / "run.json").exists():
        interrupted(pair, out)
        shutil.copy(ours / "run.json", kept)
        shutil.copy(ours / "matrices.jsonl", tmp_path / "lines")
    lines = [json.loads(line) for line in (tmp_path / "lines").read_bytes().splitlines()]
    text = b"".join(as_json(line) + b"\n" for line in data.draw(spoilt(lines)))
    shutil.rmtree(out, ignore_errors=True)
    ours.mkdir(exist_ok=True)
    shutil.copy(kept, ours / "run.json")
    (ours / "matrices.jsonl").write_bytes(text)
    found = survives(lambda: deltarank.extract(*pair, output=out, rank=4, server="peft"))

    assert found is not None
    assert len(found.matrices) == 4


def interrupted(pair: tuple[Path, Path], out: Path) -> None:
    """An extraction that was stopped after its third matrix."""
    with pytest.raises(KeyboardInterrupt):
        deltarank.extract(*pair, output=out, rank=4, server="peft", progress=StopAfter(3))
