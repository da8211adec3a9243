"""The real demo, trained for real: the article's picture."""

import os
import sys
from pathlib import Path

import pytest

from deltarank.cli import main
from deltarank.results import CandidateKind, EndpointResults, Outputs, Results, Total
from doc_blocks import ROOT, run_blocks
from fake_endpoint import FakeEndpoint, serving
from transformers_endpoint import serves

pytestmark = pytest.mark.slow

FINETUNES = ("lora", "full", "merge")
OUTPUT_RANKS = (2, 8, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "deltarank-demo"
    assert main(["demo", "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Results]:
    return {name: Results.load(folder / "runs" / name) for name in FINETUNES}


def lost(results: Results, rank: int, *leaves: str) -> float:
    rows = [m for m in results.measured if not leaves or m.module.rsplit(".", 1)[-1] in leaves]
    return Total.of(rows).loss(rank).energy_lost


def test_the_merged_lora_is_all_there_at_its_rank(runs: dict[str, Results]) -> None:
    assert lost(runs["lora"], 8) < 1e-3
    assert lost(runs["lora"], 4) > 1e-2


def test_each_finetune_has_the_right_verdict(runs: dict[str, Results]) -> None:
    assert runs["lora"].verdict.kind == "merged_lora"
    assert runs["lora"].verdict.signal_rank == 8
    assert runs["full"].verdict.kind == "full"
    assert runs["merge"].verdict.kind == "full"


@pytest.mark.parametrize("name", ["full", "merge"])
def test_a_full_finetune_and_a_merge_lose_much(runs: dict[str, Results], name: str) -> None:
    assert lost(runs[name], 8) > 0.2


def test_the_full_finetune_loses_most_in_the_mlp_then_in_o_proj(runs: dict[str, Results]) -> None:
    full = runs["full"]
    mlp = lost(full, 8, "gate_proj", "up_proj", "down_proj")
    attention = {leaf: lost(full, 8, leaf) for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")}

    assert mlp > max(attention.values())
    assert max(attention, key=attention.__getitem__) == "o_proj"


def test_higher_ranks_lose_less(runs: dict[str, Results]) -> None:
    for results in runs.values():
        whole = [results.totals.whole.loss(rank).energy_lost for rank in results.ranks]
        assert whole == sorted(whole, reverse=True)


def kld(outputs: Outputs, name: str) -> float:
    return next(logits.kld.mean for logits in outputs.candidate(name).logits if logits.text == own(outputs))


def own(outputs: Outputs) -> str:
    return next(text.name for text in outputs.texts if text.own)


@pytest.mark.parametrize("name", FINETUNES)
def test_divergence_falls_with_rank_and_is_zero_for_the_controls(runs: dict[str, Results], name: str) -> None:
    outputs = runs[name].outputs
    assert outputs is not None
    by_rank = [kld(outputs, f"rank {rank}") for rank in OUTPUT_RANKS]

    assert [kld(outputs, "base"), *by_rank] == sorted([kld(outputs, "base"), *by_rank], reverse=True)
    assert kld(outputs, "any rank") <= by_rank[-1]
    controls = [each.name for each in outputs.candidates if each.kind is CandidateKind.CONTROL]
    assert controls
    assert all(kld(outputs, control) < 1e-9 for control in controls)
    assert {"q8_0", "q4_0"} <= {each.name for each in outputs.candidates}


def test_the_outputs_of_the_lora_are_kept_and_those_of_the_others_are_not(runs: dict[str, Results]) -> None:
    lora, full, merge = (runs[name].outputs for name in FINETUNES)
    assert lora is not None
    assert full is not None
    assert merge is not None

    assert kld(lora, "rank 8") < kld(lora, "q4_0")
    assert kld(full, "rank 8") > 10 * kld(full, "q4_0")
    assert kld(merge, "rank 8") > 10 * kld(merge, "q4_0")


def test_the_calibrated_lora_is_nearer_than_the_plain_one_of_its_rank(runs: dict[str, Results]) -> None:
    outputs = runs["full"].outputs
    assert outputs is not None
    assert kld(outputs, "calibrated-rank-8") < 0.85 * kld(outputs, "rank 8")


def test_the_module_that_loses_most_does_most_to_the_text(runs: dict[str, Results]) -> None:
    """Of the others the weights do not foretell the order: that is what the demo tells."""
    outputs = runs["full"].outputs
    assert outputs is not None
    (attribution,) = outputs.attribution

    assert attribution.rank == 8  # where the page's dial stands, and the verdict's headline
    assert outputs.settings["headline_rank"] == 8
    assert len(attribution.parts) == 7
    most, lost = (max(attribution.parts, key=key).name for key in (lambda p: p.kld, lambda p: p.lost))
    assert most == lost == "mlp.down_proj"


def test_one_page_shows_all_three(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")

    assert all(name in page for name in FINETUNES)
    assert page.count('data-chart="kld"') == 3
    assert (folder / "kld-by-rank.png").is_file()
    assert len(page.encode()) < 3_000_000


def test_again_it_trains_and_measures_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # in 80, the tables have a row for each run
    before = {path: path.stat().st_mtime_ns for path in (folder / "lab").rglob("*.safetensors")}
    assert main(["demo", "-o", str(folder)]) == 0
    captured = capsys.readouterr()

    assert "trained earlier" in captured.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "Loss at rank 8" in captured.out
    assert "Output divergence from the finetune" in captured.out
    assert str(folder / "report.html") in captured.out


def test_the_tutorial_as_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)

    assert run_blocks("docs/tutorial.md") >= 4


def test_the_notebook_as_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of this Python, beside the trained models."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder.parent)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]

    assert sum("text/html" in output.get("data", {}) for output in shown) >= 10
    assert not [output for output in shown if output.output_type == "error"]


@pytest.mark.parametrize(("adapter", "verdict"), [(None, "same"), ("calibrated-rank-8", "different")])
def test_a_host_with_the_finetune_beside_one_with_its_lora(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str | None, verdict: str
) -> None:
    """From two addresses to a page."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    full = folder / "lab" / "full"
    served = serves(folder / "lab" / "base", folder / "adapters" / adapter) if adapter else serves(full)
    with serving(FakeEndpoint(fault=serves(full)), FakeEndpoint(fault=served)) as (a, b):
        words = ["endpoints", a.reference, b.reference, "--completions", "-o", str(tmp_path / "run"), "--seed", "1"]
        code = main([*words, "--check"])
    found = EndpointResults.load(tmp_path / "run")

    assert (found.verdict.kind.value, code) == (verdict, 0 if verdict == "same" else 3), found.verdict.sentences
    assert "nats per token" in found.verdict.sentences[0]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_another_seed_is_not_mixed_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(folder), "--seed", "1"]) == 1
    assert "--force" in capsys.readouterr().err
