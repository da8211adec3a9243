"""Candidates added to finished outputs: the figures of one run, and no earlier one changed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import deltarank
from commands import RunCommand
from deltarank.results import CandidateResult, Outputs, Results
from pair_of_outputs import make_models, outputs_of
from refusals import refused


class Began(deltarank.ProgressListener):
    """What was begun. Interrupted, as by Ctrl-C, when work on `until` begins."""

    def __init__(self, until: str | None = None) -> None:
        self.names: list[str] = []
        self._until = until

    def began(self, name: str) -> None:
        if name == self._until:
            raise KeyboardInterrupt
        if not name.startswith("model."):
            self.names.append(name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    make_models(home)
    return home


def settings(models: Path) -> dict[str, Any]:
    files = {"texts": [models / "text.txt"], "prompts": models / "prompts.txt"}
    return {**files, "samples": 2, "max_tokens": 8, "yardsticks": ["q8_0"], "attribute": "module"}


@pytest.fixture(scope="module")
def first(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with ranks 2 and 4."""
    run = tmp_path_factory.mktemp("first") / "run"
    deltarank.outputs(models / "base", models / "finetune", ranks=[2, 4], output=run, **settings(models))
    return run


@pytest.fixture(scope="module")
def whole(models: Path) -> Outputs:
    """One run with all candidates."""
    return outputs_of(
        deltarank.outputs(
            models / "base", models / "finetune", ranks=[2, 4, 8], adapters=[models / "adapter"], **settings(models)
        )
    )


def add(models: Path, run: Path, **options: Any) -> Outputs:
    return outputs_of(deltarank.outputs(models / "base", models / "finetune", output=run, **options))


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    return shutil.copytree(first, tmp_path / "run")


def bounds_of_kept(candidate: CandidateResult) -> list[float]:
    kept = [logits.kept for logits in candidate.logits if logits.kept]
    return [bound for each in kept for bound in (each.low, each.high) if bound is not None]


def test_added_candidates_have_the_figures_of_one_run(models: Path, run: Path, whole: Outputs) -> None:
    """Options that are not given are those of the run: its texts, prompts, answers and seeds."""
    before, progress = outputs_of(Results.load(run)), Began()
    after = add(models, run, ranks=[8], adapters=[models / "adapter"], progress=progress)

    assert progress.names == ["finetune", "rank 8", "rank 8: answers", "adapter", "adapter: answers"]
    assert after == outputs_of(Results.load(run))
    assert [each.name for each in after.candidates] == [each.name for each in whole.candidates]
    assert all(after.candidate(each.name) == each for each in before.candidates)
    for added, at_once in zip(after.candidates, whole.candidates, strict=True):
        assert added.writing == at_once.writing
        for mine, other in zip(added.logits, at_once.logits, strict=True):
            assert mine.kept is not None
            assert other.kept is not None
            assert mine.kept.value == pytest.approx(other.kept.value, abs=1e-5)
            assert mine.kld.mean == pytest.approx(other.kld.mean, rel=1e-3, abs=1e-9)
    eight, theirs = after.candidate("rank 8"), whole.candidate("rank 8")
    assert [each.kld for each in eight.logits] == [each.kld for each in theirs.logits]
    assert bounds_of_kept(eight) == pytest.approx(bounds_of_kept(theirs), rel=1e-9)
    assert after.samples == whole.samples
    for new, old, one_run in zip(after.excerpts, before.excerpts, whole.excerpts, strict=True):
        assert new.kld == {**old.kld, "adapter": one_run.kld["adapter"]}
    assert after.own_answers == before.own_answers == whole.own_answers
    assert (after.attribution, after.again, after.similarity_p, after.texts) == (
        before.attribution, before.again, before.similarity_p, before.texts
    )  # fmt: skip
    assert any(each.startswith("The adapter adapter diverges") for each in after.sentences)
    assert not (run / "outputs.partial").exists()


def test_what_is_there_is_not_measured_again(models: Path, run: Path, whole: Outputs) -> None:
    after = add(models, run, ranks=[8], adapters=[models / "adapter"])
    copy, progress = shutil.copytree(models / "adapter", run.parent / "copy" / "adapter"), Began()

    assert add(models, run, ranks=[2, 8], adapters=[copy], yardsticks=["q8_0"], progress=progress) == after
    assert add(models, run, progress=progress) == after
    everything = {"ranks": [2, 4, 8], "adapters": [models / "adapter"], **settings(models)}
    assert add(models, run, progress=progress, **everything) == after
    assert progress.names == []
    weights = load_file(copy / "adapter_model.safetensors")
    save_file({name: 2 * each for name, each in weights.items()}, copy / "adapter_model.safetensors")
    third = add(models, run, adapters=[copy])
    assert third.candidates[-2].name == "adapter adapter"
    save_file(weights, copy / "adapter_model.safetensors")
    save_file({name: 3 * each for name, each in weights.items()}, copy / "adapter_model.safetensors")
    with refused("run-differs", match="adapter changed"):
        add(models, run, adapters=[copy])


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"samples": 1}, "samples: 2 in that run, 1 now"),
        ({"seed": 1}, "seed: 0 in that run, 1 now"),
        ({"max_tokens": 4}, "max_tokens: 8 in that run, 4 now"),
        ({"dtype": "bfloat16"}, "dtype: float32 in that run, bfloat16 now"),
        ({"attribute": "layer"}, "attribute: module in that run, layer now"),
        ({"quick": True}, "quick: no in that run, yes now"),
        ({"texts": ["other.txt"]}, "the texts changed"),
        ({"texts": []}, "the texts changed"),
        ({"prompts": "other.txt"}, "the prompts changed"),
    ],
)
def test_other_texts_and_settings_are_refused(
    models: Path, run: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], difference: str
) -> None:
    (run.parent / "other.txt").write_text("Another text.\nof two lines\n")
    monkeypatch.chdir(run.parent)
    before = (run / "results.json").read_bytes()
    with refused("run-differs", match=difference):
        add(models, run, ranks=[8], **options)
    assert (run / "results.json").read_bytes() == before


def test_an_interrupted_addition_leaves_the_results_and_is_resumed(models: Path, run: Path, whole: Outputs) -> None:
    before = (run / "results.json").read_bytes()
    options = {"ranks": [8], "adapters": [models / "adapter"]}
    with pytest.raises(KeyboardInterrupt):
        add(models, run, progress=Began(until="adapter"), **options)
    assert (run / "results.json").read_bytes() == before
    with refused("run-differs") as caught:
        add(models, run, ranks=[16])
    assert "outputs.partial" in (caught.value.cure or "")

    progress = Began()
    after = add(models, run, progress=progress, **options)
    assert [each.logits[1].kld for each in after.candidates if each.name in ("rank 8", "adapter")] == [
        each.logits[1].kld for each in whole.candidates if each.name in ("rank 8", "adapter")
    ]
    assert after.samples == whole.samples


@pytest.mark.slow
def test_a_killed_addition_leaves_the_results_and_is_resumed(models: Path, run: Path, whole: Outputs) -> None:
    before = (run / "results.json").read_bytes()
    words = [
        "outputs",
        models / "base",
        models / "finetune",
        "-o",
        run,
        "--ranks",
        "8",
        "--adapter",
        models / "adapter",
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "deltarank", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not any(run.glob("outputs.partial/scores-000/*.npz")) and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (run / "results.json").read_bytes() == before

    after = add(models, run, ranks=[8], adapters=[models / "adapter"])
    eight, theirs = after.candidate("rank 8"), whole.candidate("rank 8")
    assert [each.kld.mean for each in eight.logits] == pytest.approx(
        [each.kld.mean for each in theirs.logits], rel=1e-4
    )


def test_a_quick_run_is_added_to_quickly(models: Path, tmp_path: Path) -> None:
    quick = {"quick": True, "output": tmp_path, "prompts": models / "prompts.txt", "max_tokens": 8}
    deltarank.outputs(models / "base", models / "finetune", **quick)
    after = add(models, tmp_path, quick=True, ranks=[2])

    assert [each.name for each in after.candidates][2:] == ["base", "rank 2", "rank 64", "any rank"]
    assert next(note for note in after.notes if "quick" in note).startswith("a quick measurement: rank 2 and 64, 1 ans")
    assert sum("quick" in note for note in after.notes) == 1


def test_a_dry_run_says_only_what_will_be_measured(models: Path, run: Path, command: RunCommand) -> None:
    words = ("outputs", models / "base", models / "finetune", "-o", run, "--dry-run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = command(*words, "--ranks", "2,8", "--yardstick", "q4_0")

    assert "candidates  rank 8 and q4_0 (added to 8 earlier ones)" in done.out
    assert "then 3 models of" in done.out
    assert "parts" not in done.out
    plan = json.loads(command(*words, "--ranks", "2,8", "--json").out)
    assert (plan["candidates"], plan["parts"], plan["settings"]["samples"]) == (["rank 8"], 0, 2)
    assert "nothing to measure" in command(*words).out
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert "the command would stop" in command(*words, "--seed", 2).err


def test_the_command_adds_and_writes_the_page(models: Path, run: Path, command: RunCommand) -> None:
    done = command("outputs", models / "base", models / "finetune", "-o", run, "--ranks", 8)

    assert done.code == 0, done.err
    assert "has the outputs of 8 candidates; rank 8 will be added" in done.err
    assert "2 models to run" in done.err
    assert "rank 8" in (run / "report.html").read_text(encoding="utf-8")
    made = command("blind", "make", run, "--candidate", "rank 8", "--pairs", 0, "-o", run.parent / "blind")
    assert "blind-candidate" not in made.err
