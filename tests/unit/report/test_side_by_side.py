"""Several runs in a terminal: one column for each, with the figures of their results."""

import re
from dataclasses import replace

import pytest
from builders import hostile, results
from outputs_builders import hostile_outputs, outputs

from deltarank.report import runs_side_by_side
from deltarank.results import CandidateKind, Results, figure, percent


def line_of(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(label))


def cells(line: str) -> list[str]:
    return [cell for cell in re.split(r"\s{2,}", line.strip()) if cell]


def test_each_run_has_a_column_with_its_own_loss() -> None:
    runs = [results(name="lab/one"), results(name="lab/two", ranks=(8, 64))]
    text = runs_side_by_side(runs, rank=64)

    assert cells(line_of(text, "one")) == ["one", "two"]
    for label, total in [("all matrices", runs[0].totals.whole), *runs[0].totals.by_module.items()]:
        loss = total.loss(64)
        assert line_of(text, label).count(figure(loss.cosine_distance)) == 2
        assert percent(loss.energy_lost) in line_of(text, label)


def test_a_rank_that_a_run_lacks_is_a_dash() -> None:
    assert set(cells(line_of(runs_side_by_side([results()], rank=7), "all matrices"))[1:]) == {"-"}


def test_outputs_are_those_on_the_finetunes_own_answers_without_the_controls() -> None:
    found = outputs()
    text = runs_side_by_side([results(outputs=found), results(name="lab/none")], rank=64)
    own = next(text.name for text in found.texts if text.own)

    for candidate in found.candidates:
        logits = next(each for each in candidate.logits if each.text == own)
        if candidate.kind is CandidateKind.CONTROL:
            assert candidate.name not in text
        else:
            assert figure(logits.kld.mean) in line_of(text, candidate.name)


def test_runs_without_outputs_have_no_second_table() -> None:
    assert "Output divergence" not in runs_side_by_side([results()], rank=64)


@pytest.mark.parametrize("width", [60, 100])
def test_the_verdicts_follow_within_the_width(width: int) -> None:
    sentences = ("A headline.", "This is a full finetune or a merge, with many more words than a line of sixty has.")
    text = runs_side_by_side([results(name="lab/one", sentences=sentences)], rank=64, width=width)
    last = text.split("\n\n")[-1]

    assert " ".join(last.split()) == f"one: {sentences[1]}"
    assert all(len(line) <= width for line in last.splitlines())


def many(count: int) -> list[Results]:
    return [replace(results(name=f"lab/body-{i:02}"), outputs=outputs()) for i in range(count)]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("count", [2, 5, 30])
def test_any_number_of_runs_fits_into_the_width_and_has_its_figures_in_rows_or_columns(count: int, width: int) -> None:
    runs = many(count)
    text = runs_side_by_side(runs, rank=64, width=width)

    assert max(map(len, text.splitlines())) <= width
    loss, own = runs[0].totals.whole.loss(64), next(text.name for text in runs[0].outputs.texts if text.own)
    (kept,) = (
        logits.kept.value
        for candidate in runs[0].outputs.candidates
        if candidate.kind is CandidateKind.RANK and candidate.rank == 64
        for logits in candidate.logits
        if logits.text == own and logits.kept
    )
    if "Loss at rank 64" in text:
        assert line_of(text, "all matrices").count(percent(loss.energy_lost)) == count
        assert line_of(text, "rank 64").count(percent(kept)) == count
        return
    by_behaviour, by_energy = ([line for line in block.splitlines() if "body-" in line] for block in blocks_of(text))
    assert len(by_behaviour) == len(by_energy) == count
    assert all(percent(kept).removesuffix(" %") in cells(line) for line in by_behaviour)
    assert all(percent(loss.energy_kept).removesuffix(" %") in cells(line) for line in by_energy)


def blocks_of(text: str) -> tuple[str, str]:
    """The two tables with a row for each run."""
    behaviour, energy = text.split("Energy of the change")
    return behaviour, energy.split("body-00: ")[0]


def test_what_does_not_fit_is_named() -> None:
    text = runs_side_by_side(many(30), rank=64, width=60)
    heading, ranks = line_of(text, "kind"), [str(rank) for rank in page_ranks()]
    missing = [rank for rank in ranks if rank not in heading.split()]

    assert "64" in heading.split()
    assert missing
    assert all(rank in " ".join(text.split()).split("Rank")[-1] for rank in missing)
    assert "the report has" in " ".join(text.split())


def page_ranks() -> list[int]:
    return [loss.rank for loss in results().totals.whole.losses]


def test_hostile_names_add_no_line_and_no_direction_mark() -> None:
    run = replace(hostile(), outputs=hostile_outputs())
    text = runs_side_by_side([run, run], rank=64)

    assert not {"\u202e", "\u2028"} & set(text)
    assert not any(line.startswith("{{") for line in text.splitlines())
