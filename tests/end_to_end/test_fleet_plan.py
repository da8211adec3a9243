"""`deltarank fleet`: its rank plan, the kinship of its finetunes, and its pages, from real files."""

import json
import shutil
from pathlib import Path

import pytest
from fleet_models import threads
from tiny_checkpoints import base_weights, full_finetune, merged_lora, write

import deltarank
from commands import RunCommand, StopAfter
from deltarank.results import DeltaSketch, Fleet

RANKS = [1, 8]
PLANNED = ("--max-error", "0.9", "--slots", "2", "--gpu-memory", "24GB", "--ranks", "1,8", "-q")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, base = tmp_path_factory.mktemp("models"), base_weights()
    one, two, lora = full_finetune(base), full_finetune(base, seed=5), merged_lora(base, 3)
    merge = {name: w + 0.7 * (one[name] - w) + 0.4 * (two[name] - w) for name, w in base.items()}
    write(home / "base", base)
    for name, weights in {"lora": lora, "merge": merge, "one": one, "two": two}.items():
        write(home / "ft" / name, weights)
    shutil.copytree(home / "ft" / "one", home / "ft" / "again")
    return home


def test_a_merge_and_a_copy_are_found(models: Path, tmp_path: Path) -> None:
    kinship = deltarank.fleet(models / "base", [models / "ft"], output=tmp_path, ranks=RANKS, force=True).kinship

    assert kinship is not None
    assert [(group.names, group.equal) for group in kinship.duplicates] == [(("again", "one"), True)]
    (merge,) = kinship.merges
    assert {part.name: part.weight for part in merge.parts} == pytest.approx({"again": 0.7, "two": 0.4}, abs=0.01)
    assert abs(kinship.cosine("one", "lora")) < 4 * kinship.standard_error


def test_sketches_depend_neither_on_workers_nor_on_interruptions(models: Path, tmp_path: Path) -> None:
    given = [models / "ft" / name for name in ("merge", "one", "lora")]
    found = []
    for workers in (1, 2):
        with threads(workers):
            fleet = deltarank.fleet(models / "base", given, output=tmp_path / str(workers), ranks=RANKS)
        found.append(fleet.kinship)
    with pytest.raises(KeyboardInterrupt):
        deltarank.fleet(models / "base", given, output=tmp_path / "cut", ranks=RANKS, progress=StopAfter(9))
    found.append(deltarank.fleet(models / "base", given, output=tmp_path / "cut", ranks=RANKS).kinship)

    assert found[0] == found[1] == found[2]
    for name in ("merge", "one", "lora"):
        sketches = [DeltaSketch.load(tmp_path / folder / name) for folder in ("1", "2", "cut")]
        assert sketches[0].length == 1024
        assert len(sketches[0].matrices) == 8
        assert all(sketches[0].matrices.values())
        assert dict(sketches[0].matrices) == dict(sketches[1].matrices) == dict(sketches[2].matrices)


def test_a_finished_fleet_is_planned_again_without_measuring(models: Path, tmp_path: Path, command: RunCommand) -> None:
    folder, words = tmp_path / "fleet", ("fleet", models / "base", models / "ft", "-o", tmp_path / "fleet")
    first = command(*words, *PLANNED)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    again = command(*words, *PLANNED, "--max-error", "0.01")
    stored = Fleet.load(folder)

    assert (first.code, again.code) == (0, 0)
    assert first.out.startswith("Serve ")
    assert "own weights" in again.out
    assert stored.plan is not None
    assert stored.plan.limit == 0.01
    assert times == {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    assert Fleet.from_json(stored.to_json()) == stored


def test_pages_with_links(models: Path, tmp_path: Path, command: RunCommand) -> None:
    folder = tmp_path / "fleet"
    words = ("fleet", models / "base", models / "ft", models / "gone", *PLANNED, "-o", folder)
    done = command(*words)
    page = (folder / "fleet.html").read_text(encoding="utf-8")

    assert "again and one have equal sketches and norms" in " ".join(done.out.split())
    assert "0.70 again + 0.40 two" in " ".join(done.out.split())
    for name in ("again", "lora", "merge", "one", "two"):
        assert f'<a href="{name}/report.html">{name}</a>' in page
        assert (folder / name / "report.html").is_file()
    assert "gone/report.html" not in page
    (folder / "fleet.html").unlink()
    again = command("report", folder)
    assert (again.code, again.out.splitlines()[0]) == (0, str(folder / "fleet.html"))
    assert (folder / "fleet.html").read_text(encoding="utf-8") == page
    (folder / "fleet.html").unlink()
    assert (
        command("fleet", models / "base", models / "ft", models / "gone", *PLANNED, "--no-report", "-o", folder).code
        == 0
    )
    assert not (folder / "fleet.html").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--slots", "4"], "A plan needs one limit"),
        (["--max-error", "1.5"], "is not a relative error"),
        (["--max-error", "0.5", "--gpu-memory", "much"], "is not a size of memory"),
        (["--max-error", "0.5", "--slots", "0"], "--slots 0"),
        (["--max-error", "0.5", "--server", "vllm"], "--server is only used with --extract"),
    ],
)
def test_a_plan_that_cannot_be_made(
    models: Path, tmp_path: Path, command: RunCommand, words: list[str], says: str
) -> None:
    done = command("fleet", models / "base", models / "ft" / "one", "--ranks", "8", "-q", "-o", tmp_path / "f", *words)

    assert done.code == 2
    assert says in done.err


def test_what_cannot_be_planned_is_said_before_anything_is_measured(
    models: Path, tmp_path: Path, command: RunCommand
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(models / "base", copy)
    config = json.loads((copy / "config.json").read_text()) if (copy / "config.json").exists() else {}
    (copy / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    words = ("fleet", copy, models / "ft" / "one", "--max-error", "0.5", "-q", "-o", tmp_path / "f")
    heads = command(*words, "--ranks", "8", "--tensor-parallel", "3")
    ranks = command(*words, "--ranks", "3")

    assert (heads.code, ranks.code) == (2, 2)
    assert "cannot divide 4 attention heads over 3 GPUs" in heads.err
    assert "No rank of vLLM's slots is measured" in ranks.err
    assert not (tmp_path / "f").exists()


def test_a_fleet_without_outputs_is_kept_though_no_limit_on_them_can_be_planned(
    models: Path, tmp_path: Path, command: RunCommand
) -> None:
    words = ("fleet", models / "base", models / "ft" / "one", "--ranks", "8", "-q", "-o", tmp_path / "f")
    done = command(*words, "--max-kld", "0.1")

    assert done.code == 2
    assert "no finetune has outputs" in done.err
    assert "deltarank outputs" in done.err
    assert "repeat this command" in done.err
    assert [each.name for each in Fleet.load(tmp_path / "f").measured] == ["one"]


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("80GiB", 80 * 2**30), ("1.5 TB", 1.5e12), ("512", 512)])
def test_sizes_of_memory(models: Path, tmp_path: Path, command: RunCommand, text: str, size: float) -> None:
    words = (
        "fleet",
        models / "base",
        models / "ft" / "lora",
        "--ranks",
        "8",
        "-q",
        "--no-report",
        "--max-error",
        "0.5",
    )
    assert command(*words, "-o", tmp_path / "fleet", "--gpu-memory", text).code == 0
    plan = Fleet.load(tmp_path / "fleet").plan
    assert plan is not None
    assert plan.gpu_memory == size


def test_what_slots_cost_more_than_the_models_is_said(models: Path, tmp_path: Path, command: RunCommand) -> None:
    words = ("fleet", models / "base", models / "ft" / "lora", "--ranks", "8,512", "-q", "--no-report")
    command(*words, "--max-error", "0.5", "--gpu-memory", "1GB", "-o", tmp_path / "fleet")
    plan = Fleet.load(tmp_path / "fleet").plan
    assert plan is not None
    text = " ".join(plan.sentences)
    dear = [each.rank for each in plan.costs if not each.as_loras]

    assert dear
    assert f" {dear[-1]}, no finetune is served as a LoRA: the base and its slots take more memory" in text
