"""`deltarank.compare` as a library, on real files: every figure against numpy, and every way to be cut off."""

import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import MATRICES, base_weights, full_finetune, merged_lora, write

import deltarank
from commands import LineProcess
from deltarank.errors import CheckpointError, OutputError
from deltarank.results import Outcome, Results, VerdictKind
from deltarank.runtime import DeltaReader
from tiny_architectures import best_approximation

Weights = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    home = tmp_path_factory.mktemp("models")
    base = base_weights()
    made: dict[str, Weights] = {
        "base": base,
        "full": full_finetune(base),
        "lora": merged_lora(base, 3),
        "copy": dict(base),
        "tiny": full_finetune(base, scale=2e-6),
        "unrelated": base_weights(seed=77),
    }
    return {name: write(home / name, weights) for name, weights in made.items()}


def truth_of(folders: Mapping[str, Path], name: str, finetune: str = "full") -> tuple[np.ndarray, np.ndarray]:
    """(W0, W - W0) in float64, read by safetensors' own reader."""
    before = load_file(folders["base"] / "model.safetensors")[name].double().numpy()
    return before, load_file(folders[finetune] / "model.safetensors")[name].double().numpy() - before


def numbers(results: Results) -> tuple[Any, ...]:
    """Everything but times."""
    return ([replace(m, seconds=None) for m in results.matrices], results.skipped, results.verdict, results.notes)


def test_every_figure_is_that_of_numpy(folders: Mapping[str, Path]) -> None:
    results = deltarank.compare(folders["base"], folders["full"], ranks=[1, 4, 16, 64])

    assert len(results.measured) == MATRICES
    for m in results.measured:
        before, delta = truth_of(folders, m.name)
        values = np.linalg.svd(delta, compute_uv=False)
        energy = float((values**2).sum())
        shares = values**2 / energy

        assert m.shape == delta.shape
        assert m.max_rank == len(values)
        assert m.frobenius == pytest.approx(np.linalg.norm(delta), rel=1e-6)
        assert m.relative_norm == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(before), rel=1e-6)
        assert m.mean_abs == pytest.approx(np.abs(delta).mean(), rel=1e-6)
        assert m.stable_rank == pytest.approx(energy / values[0] ** 2, rel=1e-5)
        assert m.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        assert m.singular_values == pytest.approx(values, rel=1e-4, abs=3e-4 * values[0])
        for loss in m.losses:
            approximation = best_approximation(delta, loss.rank)
            left = delta - approximation
            cosine = (delta * approximation).sum() / np.linalg.norm(delta) / np.linalg.norm(approximation)

            assert loss.mse == pytest.approx((left**2).mean(), rel=1e-4, abs=1e-15)
            assert loss.cosine_distance == pytest.approx(1 - cosine, abs=1e-6)
            assert loss.relative_error == pytest.approx(np.linalg.norm(left) / np.linalg.norm(delta), abs=1e-5)
            assert loss.energy_kept == pytest.approx(1 - (left**2).sum() / energy, abs=1e-6)


def test_shares_of_measured_and_skipped_tensors_add_up_to_one(folders: Mapping[str, Path]) -> None:
    results = deltarank.compare(folders["base"], folders["full"], ranks=[4])
    measured = math.fsum(m.energy for m in results.matrices)
    left_out = {s.name: s for s in results.skipped}
    for name, skipped in left_out.items():
        _, delta = truth_of(folders, name)

        assert skipped.energy == pytest.approx(float((delta**2).sum()), rel=1e-5)
    whole = measured + math.fsum(s.energy or 0.0 for s in left_out.values())

    assert set(left_out) >= {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"}
    assert math.fsum(s.share or 0.0 for s in left_out.values()) == pytest.approx(1 - measured / whole, rel=1e-9)


@pytest.mark.parametrize(
    ("finetune", "kind"),
    [
        ("full", VerdictKind.FULL),
        ("lora", VerdictKind.MERGED_LORA),
        ("copy", VerdictKind.IDENTICAL),
        ("tiny", VerdictKind.ROUNDING),
        ("unrelated", VerdictKind.UNRELATED),
    ],
)
def test_the_kind_of_delta_is_recognised(folders: Mapping[str, Path], finetune: str, kind: VerdictKind) -> None:
    results = deltarank.compare(folders["base"], folders[finetune], ranks=[1, 2, 4, 8])

    assert results.verdict.kind is kind
    assert results.verdict.signal_rank == (3 if finetune == "lora" else None)


def test_a_merged_lora_keeps_nearly_all_at_its_rank_and_not_below(folders: Mapping[str, Path]) -> None:
    """Beyond the rank lies rounding alone."""
    results = deltarank.compare(folders["base"], folders["lora"], ranks=[1, 3])
    whole = results.totals.whole

    assert whole.loss(3).energy_lost <= (whole.rounding_floor or 0.0)
    assert whole.loss(1).energy_lost > 0.2


def test_an_unrelated_base_is_reported_before_anything_is_measured(folders: Mapping[str, Path]) -> None:
    events: list[str] = []

    class Listener(deltarank.ProgressListener):
        def warned(self, sentence: str) -> None:
            events.append(sentence)

        def finished(self, name: str, seconds_left: float, share_done: float) -> None:
            events.append(name)

    deltarank.compare(folders["base"], folders["unrelated"], ranks=[4], progress=Listener())

    assert "as large as the weights" in events[0]
    assert sum("as large" in event for event in events) == 1


def test_the_share_done_grows_to_one(folders: Mapping[str, Path]) -> None:
    shares: list[float] = []

    class Listener(deltarank.ProgressListener):
        def finished(self, name: str, seconds_left: float, share_done: float) -> None:
            assert seconds_left >= 0
            shares.append(share_done)

    deltarank.compare(folders["base"], folders["full"], ranks=[4], progress=Listener())

    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["base", "full"])
def test_a_bad_number_is_one_outcome_and_touches_no_other(
    folders: Mapping[str, Path], tmp_path: Path, side: str, bad: float
) -> None:
    weights = load_file(folders[side] / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 5] = bad
    broken = write(tmp_path / "broken", weights)
    pair = (broken, folders["full"]) if side == "base" else (folders["base"], broken)
    results = deltarank.compare(*pair, ranks=[4], output=tmp_path / "run")
    sound = deltarank.compare(folders["base"], folders["full"], ranks=[4])
    found = {m.name: m for m in results.matrices}

    assert found[name].outcome is Outcome.NOT_FINITE
    assert ("base" if side == "base" else "finetune") in (found[name].reason or "")
    assert [replace(m, seconds=None) for m in results.matrices if m.name != name] == [
        replace(m, seconds=None) for m in sound.matrices if m.name != name
    ]
    assert any(name in sentence for sentence in results.verdict.sentences)


def test_a_file_that_is_cut_during_the_run_is_an_outcome(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """The disk takes back the end of a shard while the run goes on."""
    cut = write(tmp_path / "cut", load_file(folders["full"] / "model.safetensors"))
    file = cut / "model.safetensors"
    whole = file.read_bytes()

    class Saboteur(deltarank.ProgressListener):
        def planned(self, plan: deltarank.Plan) -> None:
            with file.open("r+b") as handle:
                handle.truncate(len(whole) // 2)

    results = deltarank.compare(folders["base"], cut, ranks=[4], progress=Saboteur())
    outcomes = {m.outcome for m in results.matrices}

    assert outcomes == {Outcome.MEASURED, Outcome.UNREADABLE}


def test_an_audit_states_the_deviation_from_float64(folders: Mapping[str, Path]) -> None:
    results = deltarank.compare(folders["base"], folders["full"], ranks=[1, 4, 16], audit=3)

    assert len({row.name for row in results.audit}) == 3
    for row in results.audit:
        _, delta = truth_of(folders, row.name)
        values = np.linalg.svd(delta, compute_uv=False) ** 2
        truth = 1 - math.sqrt(values[: row.rank].sum() / values.sum())

        assert row.cosine_distance_float64 == pytest.approx(truth, abs=1e-9)
        assert row.deviation < 1e-6


def test_a_finished_run_is_audited_when_a_larger_audit_is_asked_for(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    pair = (folders["base"], folders["full"])
    first = deltarank.compare(*pair, ranks=[4], output=tmp_path)
    audited = deltarank.compare(*pair, ranks=[4], output=tmp_path, audit=2)
    again = deltarank.compare(*pair, ranks=[4], output=tmp_path, audit=1)

    assert (len(first.audit), len(audited.audit)) == (0, 2)
    assert replace(audited, audit=()) == first  # nothing else is measured again
    assert again == audited == deltarank.open_results(tmp_path)


def test_the_warning_of_a_wrong_base_counts_the_matrices_that_could_not_be_read(
    folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unrelated = write(tmp_path / "unrelated", base_weights(seed=9))
    read, tried = DeltaReader.sums, list[str]()

    def fails_at_first(self: DeltaReader, pair: Any) -> Any:
        tried.append(pair.name)
        if len(tried) == 1:
            raise CheckpointError("gone", cure="", slug="unreadable")
        return read(self, pair)

    monkeypatch.setattr(DeltaReader, "sums", fails_at_first)
    results = deltarank.compare(folders["base"], unrelated, ranks=[4])

    assert any("in 2 of 3 matrices tried): is this the base" in note for note in results.notes), results.notes


# Cut off ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Enough matrices to be interrupted among them, each too large to be measured with others at once."""
    home, generator = tmp_path_factory.mktemp("larger"), torch.Generator().manual_seed(5)
    names = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in range(30) for part in ("up", "down")]
    base = {name: 0.02 * torch.randn(288, 460, generator=generator) for name in names}
    base["model.norm.weight"] = torch.ones(288)
    return write(home / "base", base), write(home / "full", full_finetune(base))


FORKS = """
import json, os, sys
from deltarank import compare

def begin(base, finetune, output):
    if pid := os.fork():
        return pid
    try:
        compare(base, finetune, ranks=[4, 64], output=output)
    except BaseException:
        os._exit(1)
    os._exit(0)

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for line in sys.stdin:
    verb, *arguments = json.loads(line)
    print("@" + json.dumps({"begin": begin, "wait": wait}[verb](*arguments)), flush=True)
"""
"""Runs each comparison in a process of its own, which need not import torch again."""


@pytest.fixture(scope="module")
def forks() -> Iterator[LineProcess]:
    with LineProcess(FORKS, os.environ) as forks:
        yield forks


def lines_in(run: Path) -> int:
    try:
        return (run / "matrices.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def kill_after(forks: LineProcess, pair: tuple[Path, Path], run: Path, lines: int) -> None:
    """Starts the job and kills it, not to be caught, once it has written so many lines."""
    process = forks.request(["begin", *map(str, pair), str(run)])
    until = time.monotonic() + 60
    while lines_in(run) < lines and not (run / "results.json").exists() and time.monotonic() < until:
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    forks.request(["wait", process])


def test_a_resumed_run_ends_with_the_same_numbers(
    larger: tuple[Path, Path], forks: LineProcess, tmp_path: Path
) -> None:
    whole = deltarank.compare(*larger, ranks=[4, 64])
    run, chance = tmp_path / "run", random.Random(1)
    for _ in range(3):
        kill_after(forks, larger, run, lines_in(run) + chance.randrange(1, 18))
        assert not (run / "results.json").exists()
    finished = lines_in(run)
    resumed: list[int] = []

    class Listener(deltarank.ProgressListener):
        def resumed(self, finished: int) -> None:
            resumed.append(finished)

    results = deltarank.compare(*larger, ranks=[4, 64], output=run, progress=Listener())

    assert resumed == [finished]
    assert finished > 3
    assert numbers(results) == numbers(whole)
    assert numbers(Results.load(run)) == numbers(whole)
    assert sorted(path.name for path in run.iterdir()) == ["results.json", "run.json"]


def test_a_changed_input_is_refused_and_named(larger: tuple[Path, Path], forks: LineProcess, tmp_path: Path) -> None:
    kill_after(forks, larger, tmp_path / "run", 4)
    file = larger[1] / "model.safetensors"
    weights = load_file(file)
    stamp = file.stat().st_mtime_ns
    weights["model.norm.weight"] += 1
    save_file(weights, file)
    assert file.stat().st_mtime_ns != stamp

    with pytest.raises(OutputError, match="the finetune changed"):
        deltarank.compare(*larger, ranks=[4, 64], output=tmp_path / "run")


def test_two_processes_do_not_share_a_folder(larger: tuple[Path, Path], forks: LineProcess, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = forks.request(["begin", *map(str, larger), str(run)])
    try:
        while lines_in(run) < 1:
            assert not (run / "results.json").exists()
            time.sleep(0.001)
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(OutputError, match="Another process"):
            deltarank.compare(*larger, ranks=[4, 64], output=run)
    finally:
        os.kill(process, signal.SIGCONT)
        assert forks.request(["wait", process]) == 0

    assert len(Results.load(run).measured) == 60


def test_results_json_has_the_documented_fields(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """Names that people and scripts rely on."""
    deltarank.compare(folders["base"], folders["full"], ranks=[4], output=tmp_path / "run")
    data = json.loads((tmp_path / "run" / "results.json").read_text())
    matrix = data["matrices"][0]

    assert {"format_version", "tool_version", "created", "base", "finetune", "settings"} <= set(data)
    assert {"matrices", "skipped", "totals", "verdict", "outputs"} <= set(data)
    assert {"ref", "revision", "files"} == set(data["base"])
    assert {"ranks", "solver", "tolerance", "dtype", "device"} <= set(data["settings"])
    assert {"name", "layer", "module", "shape", "outcome", "dtype", "solver", "losses"} <= set(matrix)
    assert {"relative_norm", "mean_abs", "frobenius", "singular_values", "rounding_floor"} <= set(matrix)
    assert {"max_rank", "stable_rank", "effective_rank", "signal_rank"} <= set(matrix)
    assert set(matrix["losses"][0]) == {"rank", "mse", "cosine_distance", "relative_error", "energy_kept"}
    assert {"name", "outcome", "reason"} <= set(data["skipped"][0])
    assert {"losses", "by_module"} <= set(data["totals"])
    assert set(data["verdict"]) >= {"kind", "sentences"}
