"""What the demo reads to its models, and what it tells of what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from deltarank.demo import spoken, write_reading
from deltarank.results import (
    AttributionResult,
    CandidateKind,
    CandidateResult,
    Divergence,
    Interval,
    Logits,
    Loss,
    MatrixResult,
    Outcome,
    Outputs,
    Part,
    Reference,
    Results,
    Text,
    Verdict,
    VerdictKind,
)

OWN = "its own answers"


def logits(kld: float, kept: float) -> Logits:
    spread = Divergence(kld, None, None, kld, kld, kld, kld, kld, kld)
    one = Interval(0.5)
    return Logits(OWN, 100, 4, spread, spread, one, one, 0.0, 5.0, 5.0, Interval(0.0), kept=Interval(kept))


def outputs(**kept: float) -> Outputs:
    named = {"finetune again": 1.0, "base": 0.0, **{name.replace("_", " "): share for name, share in kept.items()}}
    kinds = {"finetune again": CandidateKind.CONTROL, "base": CandidateKind.BASE}
    candidates = tuple(
        CandidateResult(name, kinds.get(name, CandidateKind.RANK), logits=(logits(0.4 * (1 - share), share),))
        for name, share in named.items()
    )
    return Outputs("lab/full", (Text("pages", 2, 50), Text(OWN, 4, 100, own=True)), candidates)


def run(found: Outputs | None) -> Results:
    matrix = MatrixResult(
        name="model.layers.0.mlp.up_proj.weight",
        layer=0,
        module="mlp.up_proj",
        shape=(64, 64),
        outcome=Outcome.MEASURED,
        dtype="bfloat16",
        max_rank=64,
        frobenius=1.0,
        losses=(Loss.from_energy(8, lost=0.4, total=1.0, entries=4096),),
    )
    return Results(
        base=Reference("lab/base"),
        finetune=Reference("lab/full"),
        settings={"ranks": [8]},
        matrices=(matrix,),
        skipped=(),
        verdict=Verdict(VerdictKind.FULL, ("said",)),
        tool_version="0.1.0",
        created="2026-11-25",
        outputs=found,
    )


def test_the_table_has_a_row_a_candidate_and_no_control() -> None:
    lines = spoken({"lora": run(outputs(rank_8=0.999)), "full": run(outputs(rank_8=0.63, any_rank=0.78))})
    rows = [line.split("  ")[1].strip() for line in lines[3:6]]

    assert rows == ["base", "rank 8", "any rank"]
    assert "0.148         63 %" in lines[4]
    assert lines[5].split()[2] == "-"  # the first has none
    assert not any("finetune again" in line for line in lines)


def test_behaviour_stands_beside_energy() -> None:
    text = " ".join(spoken({"full": run(outputs(rank_8=0.63, any_rank=0.78))}))

    assert "Behaviour kept at rank 8, and in brackets energy kept: full finetune 63 % (60 %)." in text
    assert "At any rank: full finetune 78 %." in text


def test_it_tells_which_module_matters_and_whether_the_weights_foretold_it() -> None:
    parts = tuple(Part(name, None, name, kld, 1.0, 0.5, 0.5) for name, kld in (("mlp.up_proj", 0.1), ("q_proj", 0.2)))
    found = replace(outputs(rank_8=0.6), attribution=(AttributionResult(8, "module", OWN, parts, 0.3, 1.0, -0.25),))
    text = " ".join(spoken({"full": run(found)}))

    assert "q_proj alone makes the most, 0.2 nats per token" in text
    assert "does to the text: -0.25" in text


def test_nothing_is_told_of_runs_without_outputs() -> None:
    assert spoken({"full": run(None)}) == []
    assert spoken({"full": run(replace(outputs(), texts=(Text("pages", 2, 50),)))}) == []


def test_pages_fit_into_a_window_and_openings_begin_pages(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    paragraphs = [f"Paragraph {i} says {'this and that, ' * (i % 9)}and ends." for i in range(200)]
    (texts / "manual.txt").write_text("\n\n".join([*paragraphs, "ü" * 400]), encoding="utf-8")
    reading = write_reading(texts, tmp_path / "reading", length=192)
    pages = [json.loads(line)["text"] for line in reading.text.read_text(encoding="utf-8").splitlines()]
    openings = [json.loads(line)["prompt"] for line in reading.prompts.read_text(encoding="utf-8").splitlines()]

    assert len(pages) == 12 == len({*pages})
    assert all(95 <= len(page.encode()) <= 191 for page in pages)
    assert len(openings) == 8 == len({*openings})
    assert all(20 <= len(opening) <= 64 for opening in openings)
    assert all(any(paragraph.startswith(opening.split("\n")[0]) for paragraph in paragraphs) for opening in openings)


def test_the_same_texts_give_the_same_reading(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "manual.txt").write_text("\n\n".join(f"A paragraph of some length, number {i}." for i in range(90)))
    one, two = (write_reading(texts, tmp_path / name) for name in ("a", "b"))

    assert one.text.read_bytes() == two.text.read_bytes()
    assert one.prompts.read_bytes() == two.prompts.read_bytes()
