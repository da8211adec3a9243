"""`deltarank fleet` on real files: each finetune as `compare` measures it, the base read once, and what fails."""

import csv
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from fleet_models import lines_in, numbers, threads, write_adapter, write_larger, write_models
from tiny_checkpoints import HIDDEN, LAYERS, base_weights, full_finetune, write

import deltarank
from commands import LineProcess, RunCommand, StopAfter
from deltarank.checkpoints import LocalSource
from deltarank.errors import JobError, OutputError, UsageError
from deltarank.results import Fleet, FleetOutcome, Results, VerdictKind

RANKS = [2, 8]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_larger(tmp_path_factory.mktemp("larger"))


def names(fleet: Fleet) -> list[str]:
    return [each.name for each in fleet.finetunes]


@pytest.mark.parametrize("workers", [1, 2])
def test_each_finetune_is_measured_as_by_compare(models: Path, tmp_path: Path, workers: int) -> None:
    with threads(workers):
        fleet = deltarank.fleet(models / "base", [models / "ft"], output=tmp_path / "fleet", ranks=RANKS, audit=1)
        for each in fleet.finetunes:
            deltarank.compare(models / "base", each.reference, output=tmp_path / each.name, ranks=RANKS, audit=1)

    assert names(fleet) == ["copy", "full", "lora", "nan", "second", "unrelated", "wide"]
    for name in names(fleet):
        assert numbers(tmp_path / "fleet" / name) == numbers(tmp_path / name)


def test_an_adapter_is_a_finetune(models: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", rank=4)
    given = [models / "ft" / "full", adapter]
    row = deltarank.fleet(models / "base", given, output=tmp_path / "fleet", ranks=RANKS).finetunes[1]
    deltarank.compare(models / "base", adapter, output=tmp_path / "one", ranks=RANKS)

    assert row.verdict is VerdictKind.ADAPTER
    assert numbers(tmp_path / "fleet" / row.name) == numbers(tmp_path / "one")


def test_embeddings_in_windows_have_the_same_sums(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltarank.checkpoints.chunks.CHUNK_ENTRIES", 64)
    monkeypatch.setattr("deltarank.jobs.fleet.base_pass.WINDOW_BYTES", 300)
    full = models / "ft" / "full"
    deltarank.fleet(models / "base", [full, models / "ft" / "second"], output=tmp_path / "fleet", ranks=RANKS)
    deltarank.compare(models / "base", full, output=tmp_path / "one", ranks=RANKS)

    assert numbers(tmp_path / "fleet" / "full") == numbers(tmp_path / "one")


def test_the_rows_are_those_of_the_runs(models: Path, tmp_path: Path) -> None:
    fleet = deltarank.fleet(models / "base", [models / "ft"], output=tmp_path / "fleet", ranks=RANKS)
    rows = list(csv.DictReader((tmp_path / "fleet" / "fleet.csv").read_text().splitlines()))

    assert Fleet.load(tmp_path / "fleet") == fleet
    assert [(row["name"], int(row["rank"])) for row in rows] == [
        (name, rank) for name in names(fleet) for rank in RANKS
    ]
    for each in fleet.finetunes:
        run = Results.load(tmp_path / "fleet" / str(each.run))
        assert (each.losses, each.verdict, each.headline) == (
            run.totals.losses,
            run.verdict.kind,
            run.verdict.sentences[0],
        )
        assert (each.parameters, each.relative_norm) == (run.totals.whole.entries, run.totals.whole.relative_norm)
        kept = [float(row["energy_kept"]) for row in rows if row["name"] == each.name]
        assert kept == [loss.energy_kept for loss in run.totals.losses]


def test_the_parquet_file_has_the_rows(models: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    given = [models / "missing", models / "ft" / "full", models / "ft" / "copy"]
    fleet = deltarank.fleet(models / "base", given, output=tmp_path / "fleet", ranks=RANKS)
    table = parquet.read_table(tmp_path / "fleet" / "fleet.parquet")
    types = {name: str(table.schema.field(name).type) for name in ("name", "rank", "energy_kept")}

    assert table.to_pylist() == fleet.rows()
    assert types == {"name": "string", "rank": "int64", "energy_kept": "double"}


# The base is read once ----------------------------------------------------------------------------------------


def test_the_base_is_read_once_for_all(larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, whole = {"base": 0, "others": 0}, LocalSource.read_into

    def counted(self: LocalSource, file: str, start: int, buffer: memoryview) -> None:
        read["base" if "base" in self.path(file).parts else "others"] += buffer.nbytes
        whole(self, file, start, buffer)

    monkeypatch.setattr(LocalSource, "read_into", counted)
    with threads(2):
        fleet = deltarank.fleet(larger / "base", [larger / "ft"], output=tmp_path / "fleet", ranks=RANKS)
    size = sum(path.stat().st_size for path in (larger / "base").glob("*.safetensors"))

    assert len(fleet.measured) == 3
    assert read["base"] <= 1.02 * size
    assert read["others"] <= 3 * 1.02 * size
    assert fleet.settings["base_bytes_read"] <= 1.02 * fleet.settings["base_bytes"]


def test_the_number_of_open_files_is_bounded(larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltarank.checkpoints.source.MAX_OPEN_FILES", 3)
    most = 0

    class Counting(deltarank.ProgressListener):
        def finished(self, name: str, seconds_left: float, share_done: float) -> None:
            nonlocal most
            most = max(most, open_files())

    before = open_files()
    deltarank.fleet(larger / "base", [larger / "ft"], output=tmp_path, ranks=RANKS, force=True, progress=Counting())

    # The kept ones, the one that a worker reads, and that of the fleet's own records.
    assert before < most <= before + 3 + 2 + 1
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_several_passes_give_the_same_numbers(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deltarank.fleet(models / "base", [models / "ft"], output=tmp_path / "one", ranks=RANKS)
    monkeypatch.setattr("deltarank.jobs.fleet.run.MOST_HEADER_BYTES", 60_000)
    fleet = deltarank.fleet(models / "base", [models / "ft"], output=tmp_path / "several", ranks=RANKS)

    assert fleet.settings["base_bytes_read"] >= 2 * fleet.settings["base_bytes"]
    for name in names(fleet):
        assert numbers(tmp_path / "one" / name) == numbers(tmp_path / "several" / name)


# Cut off, and continued ---------------------------------------------------------------------------------------

FORKS = """
import json, os, sys
import deltarank

def begin(base, finetunes, output):
    if pid := os.fork():
        return pid
    try:
        deltarank.fleet(base, [finetunes], ranks=[2, 8], output=output)
    except BaseException:
        os._exit(1)
    os._exit(0)

deltarank.fleet  # imports torch
for line in sys.stdin:
    verb, *arguments = json.loads(line)
    print("@" + json.dumps(begin(*arguments) if verb == "begin" else os.waitpid(*arguments, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_killed_fleet_is_resumed_by_matrix(larger: Path, tmp_path: Path) -> None:
    base, folder = larger / "base", tmp_path / "fleet"
    with LineProcess(FORKS, os.environ) as forks:
        for wanted in (4, 17):
            process = forks.request(["begin", str(base), str(larger / "ft"), str(folder)])
            until = time.monotonic() + 60
            while lines_in(folder) < wanted and time.monotonic() < until:
                time.sleep(0.001)
            os.kill(process, signal.SIGKILL)
            assert forks.request(["wait", process]) == signal.SIGKILL
    kept = lines_in(folder)
    resumed: list[int] = []

    class Listener(deltarank.ProgressListener):
        def resumed(self, finished: int) -> None:
            resumed.append(finished)

    fleet = deltarank.fleet(base, [larger / "ft"], ranks=RANKS, output=folder, progress=Listener())

    assert kept >= 17
    assert resumed == [kept]
    for name in names(fleet):
        deltarank.compare(base, larger / "ft" / name, ranks=RANKS, output=tmp_path / name)
        assert numbers(folder / name) == numbers(tmp_path / name)
        assert sorted(path.name for path in (folder / name).iterdir()) == ["results.json", "run.json", "sketch.json"]
    assert not (folder / "matrices.jsonl").exists()


def test_finetunes_can_be_added_to_a_finished_fleet(models: Path, tmp_path: Path) -> None:
    folder, base, few = tmp_path / "fleet", models / "base", [models / "ft" / "full", models / "ft" / "lora"]
    deltarank.fleet(base, few, output=folder, ranks=RANKS)
    before = {name: (folder / name / "results.json").stat().st_mtime_ns for name in ("full", "lora")}
    fleet = deltarank.fleet(base, [models / "ft" / "second", *few], output=folder, ranks=RANKS)

    assert names(fleet) == ["second", "full", "lora"]
    assert len(fleet.measured) == 3
    assert before == {name: (folder / name / "results.json").stat().st_mtime_ns for name in ("full", "lora")}


def test_a_fleet_keeps_the_names_it_gave(models: Path, tmp_path: Path) -> None:
    """Also after an interruption, when one with the name of another is added."""
    for owner in ("one", "two"):
        shutil.copytree(models / "ft" / "full", tmp_path / owner / "tuned")
    one, two, folder = tmp_path / "one" / "tuned", tmp_path / "two" / "tuned", tmp_path / "fleet"
    with pytest.raises(KeyboardInterrupt):
        deltarank.fleet(models / "base", [one], output=folder, ranks=RANKS, progress=StopAfter(2))
    fleet = deltarank.fleet(models / "base", [two, one], output=folder, ranks=RANKS)

    assert names(fleet) == ["two--tuned", "tuned"]
    deltarank.compare(models / "base", one, output=tmp_path / "run", ranks=RANKS)
    assert numbers(folder / "tuned") == numbers(tmp_path / "run")
    assert names(deltarank.fleet(models / "base", [one, two], output=tmp_path / "new", ranks=RANKS)) == [
        "one--tuned",
        "two--tuned",
    ]


def test_what_a_finished_fleet_refuses(models: Path, tmp_path: Path) -> None:
    folder, base = tmp_path / "fleet", models / "base"
    full, lora = models / "ft" / "full", models / "ft" / "lora"
    deltarank.fleet(base, [full, lora], output=folder, ranks=RANKS)

    with pytest.raises(OutputError, match=r"ranks: .*in that run.* now") as options:
        deltarank.fleet(base, [full, lora], output=folder, ranks=[4])
    with pytest.raises(OutputError, match=r"finetunes that are not in this list: .*lora") as fewer:
        deltarank.fleet(base, [full], output=folder, ranks=RANKS)
    assert (options.value.slug, fewer.value.slug) == ("run-differs", "fleet-list-differs")

    shutil.rmtree(folder / "lora")
    assert names(deltarank.fleet(base, [full], output=folder, ranks=RANKS)) == ["full"]
    assert names(deltarank.fleet(base, [lora], output=folder, ranks=[4], force=True)) == ["lora"]


def test_a_finetune_that_is_gone_or_changed_after_it_was_measured(models: Path, tmp_path: Path) -> None:
    for name in ("full", "second"):
        shutil.copytree(models / "ft" / name, tmp_path / name)
    paths = [tmp_path / "full", tmp_path / "second"]
    before = deltarank.fleet(models / "base", paths, output=tmp_path / "fleet", ranks=RANKS)
    shutil.rmtree(paths[0])
    shutil.copy(models / "ft" / "lora" / "model.safetensors", paths[1])
    fleet = deltarank.fleet(models / "base", paths, output=tmp_path / "fleet", ranks=RANKS)

    assert fleet.finetunes[0] == before.finetunes[0]
    assert fleet.notes[0].startswith("full was measured before, and cannot be read any more: ")
    assert fleet.finetunes[1].outcome is FleetOutcome.FAILED
    assert "its files changed after it was measured" in str(fleet.finetunes[1].reason)


# What is wrong is a row, or one clear error -------------------------------------------------------------------


def test_what_fails_is_a_row_and_stops_nothing(models: Path, tmp_path: Path) -> None:
    given = [tmp_path / "missing", models / "other", models / "base", models / "ft", models / "ft" / "full"]
    fleet = deltarank.fleet(models / "base", given, output=tmp_path / "fleet", ranks=RANKS)
    reasons = {each.name: str(each.reason) for each in fleet.finetunes if each.reason}

    assert [each.name for each in fleet.failed] == ["missing", "other", "base"]
    assert "no matrix in common" in reasons["other"]
    assert "same files" in reasons["base"]
    assert "is not a finetune of this base" in reasons["unrelated"]
    assert "1 matrix could not be measured" in reasons["nan"]
    assert [each.name for each in fleet.finetunes if not each.is_of_base] == ["missing", "other", "base", "unrelated"]
    assert fleet.notes == (f"{models / 'ft' / 'full'} is listed more than once: it is measured once",)


def test_layers_and_tokens_of_one_side_are_told(models: Path, tmp_path: Path) -> None:
    base = base_weights()
    layer = {
        name.replace(".0.", f".{LAYERS}."): weight
        for name, weight in base.items()
        if name.startswith("model.layers.0.")
    }
    more = {"model.embed_tokens.weight": torch.cat([base["model.embed_tokens.weight"], torch.ones(2, HIDDEN)])}
    write(tmp_path / "deeper", full_finetune(base) | layer)
    write(tmp_path / "tokens", full_finetune(base) | more)
    fleet = deltarank.fleet(
        models / "base",
        [tmp_path / "deeper", tmp_path / "tokens"],
        output=tmp_path / "fleet",
        ranks=RANKS,
        plan=deltarank.PlanOptions(max_error=0.99),
    )
    deeper, tokens = (str(each.reason) for each in fleet.finetunes)

    assert "of its parameters could not be paired with the base" in deeper
    assert "are only in the finetune, whose vocabulary is larger" in tokens
    assert fleet.plan is not None
    assert "Planned by a part of their weights, as their notes say: deeper and tokens." in fleet.plan.sentences


def test_no_finetune(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No finetune was given") as empty:
        deltarank.fleet(models / "base", [], output=tmp_path / "fleet")
    with pytest.raises(JobError, match=r"No finetune could be measured\. missing: ") as none:
        deltarank.fleet(models / "base", ["/missing"], output=tmp_path / "fleet")
    assert (empty.value.slug, none.value.slug) == ("no-finetunes", "no-finetune-measured")
    assert [each.name for each in Fleet.load(tmp_path / "fleet").failed] == ["missing"]


def test_a_full_disk_midway(models: Path, tmp_path: Path, command: RunCommand) -> None:
    words = ("fleet", models / "base", models / "ft", "-q", "--ranks", "2,8", "-o")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        full = command(*words, tmp_path / "fleet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert full.code == 1
    assert full.err.startswith("deltarank: Cannot write ")
    assert "repeat the same command to resume" in full.err
    assert lines_in(tmp_path / "fleet") > 0
    assert command(*words, tmp_path / "fleet").code == 0
    assert command(*words, tmp_path / "whole").code == 0
    for run in (tmp_path / "whole").glob("*/results.json"):
        assert numbers(run.parent) == numbers(tmp_path / "fleet" / run.parent.name)


def test_a_list_from_the_command_line(models: Path, tmp_path: Path, command: RunCommand) -> None:
    ft = models / "ft"
    listed = tmp_path / "list.txt"
    listed.write_text(f"# two of them\n{ft / 'full'}  # the first\n\n{ft / 'lora'}\n{tmp_path / 'mis#sing'}\n")
    done = command("fleet", models / "base", "--list", listed, "--ranks", "2,8", "-o", tmp_path / "fleet")

    assert done.code == 0
    assert "mis-sing" in done.out
    assert "merged LoRA" in done.out
    assert f"wrote {tmp_path / 'fleet' / 'fleet.csv'}" in done.err
    assert [each.name for each in Fleet.load(tmp_path / "fleet").measured] == ["full", "lora"]

    listed.write_text("# nothing\n")
    assert command("fleet", models / "base", "--list", listed, "-o", tmp_path / "none").code == 2
    listed.write_bytes(b"\xff\xfe")
    assert "it is not UTF-8 text" in command("fleet", models / "base", "--list", listed).err


def test_a_dry_run_writes_nothing(models: Path, tmp_path: Path, command: RunCommand) -> None:
    words = ("fleet", models / "base", models / "ft", models / "other", "-o", tmp_path / "fleet", "--dry-run")
    lines, plan = command(*words).out, json.loads(command(*words, "--json").out)

    assert "7 finetunes to measure, 0 finished, 1 not measurable." in lines
    assert "The base is read once" in lines
    assert plan["peak_memory"] < 1e9
    assert [each["matrices"] for each in plan["finetunes"]] == [8] * 7 + [0]
    assert not (tmp_path / "fleet").exists()


# Adapters in the same pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_adapters_of_the_same_pass_are_those_of_extract(models: Path, tmp_path: Path, workers: int) -> None:
    given, options = [models / "ft" / name for name in ("full", "lora", "wide")], {"server": "peft"}
    with threads(workers):
        fleet = deltarank.fleet(
            models / "base", given, output=tmp_path / "fleet", ranks=RANKS, adapter_rank=4, **options
        )
        for each in fleet.finetunes:
            alone = tmp_path / each.name
            deltarank.extract(models / "base", each.reference, output=alone, rank=4, **options)
            made = tmp_path / "fleet" / str(each.adapter)
            for file in ("adapter_model.safetensors", "adapter_config.json"):
                assert (made / file).read_bytes() == (alone / file).read_bytes()
            assert deltarank.ExtractedAdapter.load(made).budget == deltarank.ExtractedAdapter.load(alone).budget

    assert [each.adapter for each in fleet.finetunes] == [f"{name}/adapter-r4-peft" for name in names(fleet)]
    assert fleet.settings["base_bytes_read"] == fleet.settings["base_bytes"]


def test_adapters_are_added_to_a_finished_fleet(models: Path, tmp_path: Path, command: RunCommand) -> None:
    """The finetunes are not measured again; an interrupted extraction is resumed."""
    folder, given = tmp_path / "fleet", (models / "ft" / "full", models / "ft" / "unrelated")
    words = ("fleet", models / "base", *given, "--ranks", "2,8", "-q", "--no-report", "-o", folder)
    assert command(*words).code == 0
    before = (folder / "full" / "results.json").stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        deltarank.fleet(models / "base", given, output=folder, ranks=RANKS, adapter_rank=4, progress=StopAfter(5))
    assert (folder / "full" / "adapter-r4-portable.partial").is_dir()
    assert command(*words, "--extract", "-r", 4).code == 0

    assert (folder / "full" / "results.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in (folder / "full").glob("adapter*")) == ["adapter-r4-portable"]
    assert Fleet.load(folder).settings["base_bytes_read"] <= Fleet.load(folder).settings["base_bytes"]
    assert command(*words, "-r", 4).code == 2
    assert "the highest is 512" in command(*words, "--extract", "-r", 600).err


def test_a_finetune_that_no_server_loads_has_no_adapter(models: Path, tmp_path: Path) -> None:
    full = models / "ft" / "full"
    fleet = deltarank.fleet(models / "base", [full], output=tmp_path / "fleet", ranks=RANKS, adapter_rank=48)

    assert fleet.finetunes[0].is_measured
    assert fleet.finetunes[0].adapter is None
    assert "full has no adapter: Rank 48 " in fleet.notes[0]
