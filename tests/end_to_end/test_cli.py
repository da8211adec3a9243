"""The commands as a user gives them, on tiny checkpoints, in this process: what they print, write and refuse."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from tiny_checkpoints import MATRICES, base_weights, full_finetune, merged_lora, write

import deltarank
from commands import Finished, RunCommand, StopAfter
from deltarank.results import Results


@pytest.fixture
def drawn() -> None:
    """For tests that need real pictures, which take seconds: others get a stand-in."""


@pytest.fixture
def run(
    command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> RunCommand:
    """`deltarank` with these words, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("deltarank.report.page.write.start_drawing", lambda chart: lambda: b"not drawn")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return command


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, full (a full finetune of it), lora (a merged LoRA of rank 2). Not to be written to."""
    folder = tmp_path_factory.mktemp("models")
    weights = base_weights()
    write(folder / "base", weights)
    write(folder / "full", full_finetune(weights))
    write(folder / "lora", merged_lora(weights, 2))
    return folder


@pytest.fixture
def base(models: Path) -> Path:
    return models / "base"


@pytest.fixture
def full(models: Path) -> Path:
    return models / "full"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# compare ------------------------------------------------------------------------------------------------------------


def test_compare_writes_results_and_a_page_and_prints_a_table(
    drawn: None, run: RunCommand, base: Path, full: Path
) -> None:
    done = run("compare", base, full, "-o", "run", "--ranks", "4,16")

    assert done.code == 0, done.err
    assert {"results.json", "report.html"} <= names(Path("run"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in Path("run").glob("*.png"))
    assert len(list(Path("run").glob("*.png"))) >= 3
    assert not any("partial" in name for name in names(Path("run")))
    assert "mlp.down_proj" in done.out
    assert "wrote run/report.html" in done.err
    assert "\x1b" not in done.out


def test_the_library_reads_what_the_command_writes(run: RunCommand, base: Path, full: Path) -> None:
    run("compare", base, full, "-o", "run", "--ranks", "4", "--ranks", "16,8")
    results = Results.load("run")

    assert results.ranks == (4, 8, 16)
    assert len(results.measured) == MATRICES
    assert results.settings["command"].startswith("deltarank compare ")
    assert "Results" in repr(deltarank.open_results("run"))


def test_csv_is_alone_on_stdout_and_has_the_figures_of_the_data_frame(run: RunCommand, base: Path, full: Path) -> None:
    done = run("compare", base, full, "-o", "run", "--ranks", "8,16", "--csv", "--no-report")
    frame = Results.load("run").frame()
    read = pandas.read_csv(io.StringIO(done.out))

    assert list(read.columns) == list(frame.columns)
    assert len(read) == len(frame) == 2 * frame["name"].nunique()
    assert (read["energy_kept"] == frame["energy_kept"]).all()
    assert run("compare", base, full, "--csv", "--json").code == 2


def test_without_a_report_only_results_are_written_and_a_current_report_is_kept(
    drawn: None, run: RunCommand, base: Path, full: Path
) -> None:
    command = ("compare", base, full, "-o", "run", "--ranks", "8")
    run(*command, "--no-report")
    assert names(Path("run")) == {"results.json", "run.json"}
    run(*command)
    page = Path("run/report.html")
    page.write_text(mark := page.read_text() + "<!-- kept -->")
    run(*command)
    assert page.read_text() == mark
    run(*command, "--force")
    assert page.read_text() != mark


def test_a_message_is_explained_by_the_name_at_its_end(run: RunCommand, base: Path) -> None:
    name = run("compare", base, base).err.split("deltarank explain ")[1].split(",")[0]
    done = run("explain", name)

    assert done.code == 0
    assert "\n\nCure: " in done.out
    page = (Path(__file__).parents[2] / "docs" / "messages.md").read_text()
    assert done.out.split("\n\n")[1].split() == page.split(f"## {name}\n\n")[1].split("\n\n")[1].split()
    assert "There is no message or term 'wrong-bse'. Did you mean 'wrong-base'" in run("explain", "wrong-bse").err
    for term in ("energy", "LoRA", "finetune", "noise edge"):
        entry = run("explain", *term.split())
        assert entry.code == 0
        assert term.casefold() in entry.out.splitlines()[0].casefold()
    assert run("explain").out.split() == re.findall(r"^## (\S+)$", page, re.MULTILINE)


def test_explanations_are_plain_text_that_fits_the_terminal(run: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns in code keep their asterisks."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = [run("explain", *name.split()).out for name in ("glob-matches-nothing", "bad-solver", "LoRA")]

    for text in shown:
        *lines, more = text.splitlines()
        assert max(map(len, lines)) <= 80
        assert "](" not in text
        assert "**" not in text
        assert more.startswith("More: https://")
    assert "`*down_prj*`" in shown[0]
    assert shown[2].startswith("LoRA. Low-rank")


def test_json_is_alone_on_stdout(run: RunCommand, base: Path, full: Path) -> None:
    done = run("compare", base, full, "-o", "run", "--ranks", "8", "--json")

    assert Results.from_json(done.out) == Results.load("run")


def test_quiet_prints_no_progress(run: RunCommand, base: Path, full: Path) -> None:
    done = run("compare", base, full, "-o", "run", "--ranks", "8", "-q")

    assert done.err == ""
    assert done.out


def test_the_run_is_named_after_the_finetune(run: RunCommand, base: Path, full: Path) -> None:
    done = run("compare", base, full, "--ranks", "8")

    assert done.code == 0
    assert Path("runs/full/results.json").is_file()
    assert "runs/full" in done.err


def test_globs_and_an_audit_reach_the_job(run: RunCommand, base: Path, full: Path) -> None:
    options = ("--include", "*mlp*", "--exclude", "*.1.*", "--audit", "2")
    run("compare", base, full, "-o", "run", "--ranks", "8", *options)
    results = Results.load("run")

    assert {matrix.module for matrix in results.measured} == {"mlp.up_proj", "mlp.down_proj"}
    assert {matrix.layer for matrix in results.measured} == {0}
    assert [row.rank for row in results.audit] == [8, 8]


@pytest.mark.parametrize("words", [("--solver", "exact"), ("--solver", "krylov"), ("--dtype", "float64")])
def test_solvers_and_precisions_agree(run: RunCommand, base: Path, full: Path, words: tuple[str, ...]) -> None:
    run("compare", base, full, "-o", "one", "--ranks", "8")
    run("compare", base, full, "-o", "two", "--ranks", "8", *words)
    one, two = (Results.load(name).totals.whole.loss(8).cosine_distance for name in ("one", "two"))

    assert one == pytest.approx(two, abs=2e-4)


def test_the_same_command_again_measures_nothing(run: RunCommand, base: Path, full: Path) -> None:
    first = run("compare", base, full, "-o", "run", "--ranks", "8")
    created = Results.load("run").matrices
    second = run("compare", base, full, "-o", "run", "--ranks", "8")

    assert (first.code, second.code) == (0, 0)
    assert Results.load("run").matrices == created
    assert first.out == second.out


def test_a_resumed_run_ends_with_the_same_numbers(run: RunCommand, base: Path, full: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        deltarank.compare(str(base), str(full), ranks=[8], output="run", progress=StopAfter(3))
    assert not Path("run/results.json").exists()
    done = run("compare", base, full, "-o", "run", "--ranks", "8")
    run("compare", base, full, "-o", "fresh", "--ranks", "8")
    stopped, fresh = (
        [replace(matrix, seconds=None) for matrix in Results.load(name).matrices] for name in ("run", "fresh")
    )

    assert "Resuming an interrupted run: 3 parts are finished." in done.err
    assert stopped == fresh


def test_a_run_with_other_settings_needs_force(run: RunCommand, models: Path, base: Path, full: Path) -> None:
    run("compare", base, full, "-o", "run", "--ranks", "8")
    before = Path("run/results.json").read_text()
    for words in (("--ranks", "8,16"), ("--ranks", "8", "--dtype", "float64")):
        done = run("compare", base, full, "-o", "run", *words)
        assert done.code == 1
        assert "--force" in done.err
    assert run("compare", base, models / "lora", "-o", "run", "--ranks", "8").code == 1
    assert Path("run/results.json").read_text() == before

    assert run("compare", base, models / "lora", "-o", "run", "--ranks", "8", "--force").code == 0
    assert Results.load("run").finetune.short_name == "lora"


def test_a_dry_run_reads_and_writes_nothing(run: RunCommand, base: Path, full: Path) -> None:
    done = run("compare", base, full, "-o", "run", "--dry-run")

    assert done.code == 0
    assert "model.layers" in done.out or "mlp" in done.out
    assert names(Path()) == set()


def test_a_plan_as_json(run: RunCommand, base: Path, full: Path) -> None:
    plan = json.loads(run("compare", base, full, "--dry-run", "--json", "--ranks", "8").out)

    assert len(plan["steps"]) == MATRICES
    assert {"name", "shape", "dtype", "solver", "seconds"} <= set(plan["steps"][0])
    assert plan["peak_memory"] > 0
    assert plan["read_bytes"] > 0


@pytest.mark.parametrize(
    "words", [("compare", "--ranks", "8"), ("extract", "--server", "peft", "-r", "8"), ("fleet", "--ranks", "8")]
)
def test_a_dry_run_says_that_an_earlier_run_is_in_the_way_and_what_force_would_do(
    run: RunCommand, models: Path, base: Path, full: Path, words: tuple[str, ...]
) -> None:
    verb, *options = words
    assert run(verb, base, full, *options, "-q").code == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    changed = (verb, base, full, *options[:-1], "4")
    stopped, planned, forced = run(*changed), run(*changed, "--dry-run"), run(*changed, "--dry-run", "--force")

    assert stopped.code == 1
    assert planned.code == 0
    assert planned.out == forced.out
    assert planned.err.startswith("Note: the command would stop, and this is its plan with --force.")
    assert stopped.err.split("\n")[-4].removeprefix("deltarank: ") in planned.err
    assert forced.err == ""
    assert {path: path.read_bytes() for path in before} == before
    json.loads(run(*changed, "--dry-run", "--json").out)


def used_folder() -> Path:
    """One that holds something else than a run or an adapter."""
    Path("used").mkdir()
    Path("used/thesis.txt").write_text("the only copy")
    return Path("used")


def file_in_the_way() -> Path:
    Path("notes.txt").write_text("a file")
    return Path("notes.txt/run")


@pytest.mark.parametrize("make_folder", [used_folder, file_in_the_way])
@pytest.mark.parametrize("words", [("compare",), ("extract", "--rank", "8", "--server", "peft")])
def test_an_output_that_cannot_be_used_is_refused_before_it_is_said_that_it_is_written(
    run: RunCommand, base: Path, full: Path, words: tuple[str, ...], make_folder: Callable[[], Path]
) -> None:
    """By a dry run, too."""
    folder = make_folder()
    for more in ((), ("--dry-run",)):
        done = run(words[0], base, full, "-o", folder, *words[1:], *more)
        assert done.code == 1
        assert done.out == ""
        assert "explain output-exists" in done.err or "explain output-unwritable" in done.err
        assert "Writing" not in done.err
    assert run(words[0], base, full, "-o", "new", *words[1:], "--device", "nonsense").err.count("Writing") == 0
    assert "Writing to new." in run(words[0], base, full, "-o", "new", *words[1:]).err


# bad input ----------------------------------------------------------------------------------------------------------


def assert_refused(done: Finished, slug: str, *, code: int = 1, run: str = "run") -> None:
    """One message, its cure, its place in the docs, and nothing half written."""
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.splitlines()[-1].startswith(f"More: deltarank explain {slug}, or https://")
    assert "deltarank: " in done.err
    assert "Traceback" not in done.err
    left = Path(run)
    assert not left.exists() or not {"results.json", "report.html"} & names(left)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("ranks", ["0", "-8", "many", "8,,x", "1.5", "", "1e2", "9" * 50, "8,0"]),
        ("device", ["cuda:99", "toaster", "", "meta"]),
        ("tolerance", ["0", "-1", "nan", "2"]),
    ],
)
def test_a_value_that_is_not_usable(
    run: RunCommand, base: Path, full: Path, option: str, values: Sequence[str]
) -> None:
    for value in values:
        assert_refused(run("compare", base, full, "-o", "run", f"--{option}={value}"), f"bad-{option}", code=2)


def test_a_model_is_only_said_to_be_opened_when_the_options_can_be_used(
    run: RunCommand, base: Path, full: Path
) -> None:
    for words in (
        ("compare", base, full, "--device", "toaster"),
        ("extract", base, full, "-r", "8", "--device", "toaster"),
        ("outputs", base, full, "--samples", "-1"),
        ("fleet", base, full, "--device", "toaster"),
    ):
        done = run(*words)
        assert done.code == 2
        assert "Opening" not in done.err
    assert run("compare", base, full, "-o", "run", "--ranks", "8").err.startswith(f"Opening {base} and {full}.\n")


def test_globs_that_match_nothing(run: RunCommand, base: Path, full: Path) -> None:
    for option in ("--include", "--exclude"):
        done = run("compare", base, full, "-o", "run", option, "*down_prj*")
        assert_refused(done, "glob-matches-nothing", code=2)
        assert "down_proj" in done.err  # a near name


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("comprae",),
        ("compare",),
        ("compare", "a"),
        ("compare", "a", "b", "c"),
        ("compare", "a", "b", "--solver", "magic"),
        ("compare", "a", "b", "--dtype", "int8"),
        ("compare", "a", "b", "--audit", "-1"),
        ("compare", "a", "b", "--tolerance", "small"),
        ("compare", "a", "b", "--frobnicate"),
        ("report",),
        ("demo", "--seed", "x"),
    ],
)
def test_invalid_usage_ends_with_2(run: RunCommand, words: Sequence[str]) -> None:
    done = run(*words)

    assert done.code == 2
    assert "Usage: deltarank" in done.err
    assert done.out == ""


def index(folder: Path, shard: str) -> Path:
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    return folder


def cut(folder: Path) -> Path:
    file = write(folder, base_weights(5)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folder


REFUSED: dict[str, Callable[[Path], Path]] = {
    "no-such-checkpoint": lambda folder: folder,
    "no-weights": lambda folder: folder.mkdir() or folder,
    "missing-shard": lambda folder: index(folder, "model-00001-of-00002.safetensors"),
    "outside-folder": lambda folder: index(folder, "../base/model.safetensors"),
    "truncated": cut,
    "nothing-in-common": lambda folder: write(folder, {"encoder.conv.weight": torch.ones(7, 5)}),
    "wrong-base": lambda folder: write(folder, {name: torch.cat([w, w]) for name, w in base_weights(5).items()}),
}


@pytest.mark.parametrize("slug", REFUSED)
def test_a_finetune_that_is_refused(run: RunCommand, base: Path, tmp_path: Path, slug: str) -> None:
    """Everything that the tests of checkpoints refuse reaches a user in this way."""
    done = run("compare", base, REFUSED[slug](tmp_path / "other"), "-o", "run")

    assert_refused(done, slug)
    assert slug not in ("no-such-checkpoint", "missing-shard") or re.search("other|model-00001-of-00002", done.err)


def test_a_name_that_is_not_on_the_hub_is_answered_with_the_nearest_path(run: RunCommand, base: Path) -> None:
    Path("models/mine").mkdir(parents=True)
    done = run("compare", base, "model/mine")

    assert_refused(done, "hub-unreachable")
    assert " Did you mean 'models/mine'?" in done.err


def test_base_and_finetune_the_same(run: RunCommand, base: Path) -> None:
    assert_refused(run("compare", base, base, "-o", "run"), "same-checkpoint")


def test_an_unrelated_base_is_reported(run: RunCommand, base: Path, tmp_path: Path) -> None:
    write(tmp_path / "unrelated", base_weights(9))
    done = run("compare", base, tmp_path / "unrelated", "-o", "run", "--ranks", "8")

    assert "base" in done.err
    assert done.code == 1 or Results.load("run").verdict.kind == "unrelated"


def test_nan_does_not_end_the_run(run: RunCommand, base: Path, tmp_path: Path) -> None:
    weights = full_finetune(base_weights())
    weights["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    write(tmp_path / "nan", weights)
    done = run("compare", base, tmp_path / "nan", "-o", "run", "--ranks", "8")

    assert done.code == 0
    assert len(Results.load("run").measured) == MATRICES - 1


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/full")
def test_a_full_stdout_is_reported() -> None:
    with Path("/dev/full").open("w") as full_device:
        done = subprocess.run(
            [sys.executable, "-m", "deltarank", "explain", "disk-full"],
            stdout=full_device,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert done.returncode == 1
    assert "Cannot write to standard output" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_ignored(base: Path, full: Path, tmp_path: Path) -> None:
    words = ["compare", base, full, "-q", "--json", "-o", "run", "--ranks", "8", "--no-report"]
    command = [sys.executable, "-m", "deltarank", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == ""
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
@pytest.mark.parametrize("verb", ["compare", "extract"])
def test_results_are_kept_when_drawing_fails(
    verb: str,
    drawn: None,
    no_drawing_process: None,
    run: RunCommand,
    base: Path,
    full: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine that draws reserves more address space than `ulimit -v` leaves it, and ends its process."""
    limited = tmp_path / "python"
    limited.write_text(f'#!/bin/sh\nulimit -v 16000000\nexec {shlex.quote(sys.executable)} "$@"\n')
    limited.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(limited))
    asked = {"compare": ["--ranks", "2", "-q"], "extract": ["-r", "2", "--server", "peft"]}[verb]
    done = run(verb, base, full, "-o", "made", *asked)

    assert "V8" in done.err
    assert "stack trace" not in done.err
    assert "mlp.down_proj" in done.out
    if verb == "compare":
        assert done.code == 1
        assert "docs/messages.md#no-drawing" in done.err
        assert names(tmp_path / "made") == {"results.json", "run.json"}
    else:
        assert done.code == 0, done.err
        assert "adapter_model.safetensors" in names(tmp_path / "made")


def test_an_output_that_cannot_be_written(run: RunCommand, base: Path, full: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = run("compare", base, full, "-o", tmp_path / "file" / "run", "--ranks", "8")

    assert_refused(done, "output-unwritable", run=str(tmp_path / "none"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(run: RunCommand, base: Path, full: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert_refused(run("compare", base, full, "-o", tmp_path / "locked" / "run"), "output-unwritable")


def test_a_folder_with_other_files_is_left_alone(run: RunCommand, base: Path, full: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    done = run("compare", base, full, "-o", tmp_path / "thesis", "--ranks", "8")

    assert_refused(done, "output-exists", run=str(tmp_path / "thesis"))
    assert names(tmp_path / "thesis") == {"chapter.txt"}


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; only root can make one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], capture_output=True)
    if made.returncode:
        pytest.skip("cannot make a small file system here")
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs")
def test_a_full_disk(run: RunCommand, base: Path, full: Path, tiny_disk: Path) -> None:
    done = run("compare", base, full, "-o", tiny_disk / "run", "--ranks", "8")

    assert done.code == 1
    assert "docs/messages.md#output-unwritable" in done.err
    assert "Traceback" not in done.err
    for path in (tiny_disk / "run").glob("*.html"):
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_a_hostile_name_does_not_reach_the_terminal(run: RunCommand, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.\x1b[31m\x07evil\u202e.weight"
    weights = {name: torch.randn(8, 8), "model.layers.0.mlp.up_proj.weight": torch.randn(8, 8)}
    write(tmp_path / "a", weights)
    write(tmp_path / "b", {key: w + 0.1 * torch.randn(8, 8) for key, w in weights.items()})
    done = run("compare", tmp_path / "a", tmp_path / "b", "-o", "run", "--ranks", "4")
    plan = run("compare", tmp_path / "a", tmp_path / "b", "--dry-run")

    assert (done.code, plan.code) == (0, 0)
    for text in (done.out, done.err, plan.out, plan.err):
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


@pytest.mark.parametrize(
    ("function", "options", "can_resume"), [("compare", (), True), ("plan", ("--dry-run",), False)]
)
def test_ctrl_c_says_how_to_resume(
    run: RunCommand,
    base: Path,
    full: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    options: tuple[str],
    can_resume: bool,
) -> None:
    """A dry run has nothing to resume."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deltarank, function, stop)
    done = run("compare", base, full, "-o", "run", *options)

    assert done.code == 130
    assert ("Finished work is kept: repeat the same command to resume." in done.err) == can_resume


def test_an_unexpected_error_keeps_its_traceback(
    run: RunCommand, base: Path, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(deltarank, "compare", break_)
    with pytest.raises(ZeroDivisionError):
        run("compare", base, full, "-o", "run")


# report -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(run: RunCommand, models: Path, base: Path) -> tuple[Path, Path]:
    for name in ("full", "lora"):
        assert run("compare", base, models / name, "-o", f"runs/{name}", "--ranks", "2,8", "-q").code == 0
    return Path("runs/full"), Path("runs/lora")


def test_report_makes_the_page_again(run: RunCommand, two_runs: tuple[Path, Path]) -> None:
    page = two_runs[0] / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    done = run("report", two_runs[0])

    assert done.code == 0, done.err
    assert done.out.strip() == str(page)
    assert page.read_text(encoding="utf-8") == before
    assert run("report", two_runs[0] / "results.json", "-q").err == ""


def test_report_shows_runs_side_by_side(drawn: None, run: RunCommand, two_runs: tuple[Path, Path]) -> None:
    done = run("report", *two_runs)

    assert done.code == 0, done.err
    text = Path("report/report.html").read_text(encoding="utf-8")
    assert "full" in text
    assert "lora" in text


def test_report_replaces_only_a_run_s_own_page(run: RunCommand, two_runs: tuple[Path, Path]) -> None:
    one, two = two_runs
    before = (two / "report.html").read_text(encoding="utf-8")

    assert_refused(run("report", one, "-o", two), "output-exists", run="none")
    assert_refused(run("report", one, two, "-o", two), "output-exists", run="none")
    assert (two / "report.html").read_text(encoding="utf-8") == before
    assert run("report", one, two, "-o", two, "--force").code == 0


@pytest.mark.parametrize("content", [None, "", "{}", '{"format_version": 99}', "\0"])
def test_report_refuses_a_folder_without_valid_results(run: RunCommand, tmp_path: Path, content: str | None) -> None:
    (tmp_path / "no").mkdir()
    if content is not None:
        (tmp_path / "no" / "results.json").write_text(content)

    assert_refused(run("report", tmp_path / "no"), "results-unreadable", run="none")
    assert "report.html" not in names(tmp_path / "no")


# the command itself --------------------------------------------------------------------------------------------------


def test_version_and_help(run: RunCommand) -> None:
    version = run("--version").out.splitlines()
    assert version[0] == f"deltarank {deltarank.__version__}"
    assert [line.split()[0] for line in version[1:]] == ["Python", "torch", "transformers", "peft"]
    done = run("--help")

    assert done.code == 0
    assert all(verb in done.out for verb in ("compare", "report", "demo"))


def test_demo_does_not_write_into_a_folder_with_other_runs(run: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "mine" / "runs").mkdir(parents=True)

    assert_refused(run("demo", "-o", tmp_path / "mine"), "output-exists", run="none")
    assert names(tmp_path / "mine") == {"runs"}
