"""A run as a notebook shows it."""

from dataclasses import replace

from deltarank.results import (
    BaseChoice,
    BaseKind,
    CandidateBase,
    CandidateKind,
    CandidateResult,
    Loss,
    MatrixResult,
    Outcome,
    Outputs,
    Reference,
    Results,
    Skipped,
    Verdict,
    VerdictKind,
)


def matrix(name: str, module: str, lost: float) -> MatrixResult:
    losses = (Loss.from_energy(8, lost=lost, total=1.0, entries=4),)
    return MatrixResult(name, 0, module, (2, 2), Outcome.MEASURED, "F32", 2, frobenius=1.0, losses=losses)


RUN = Results(
    base=Reference("org/base"),
    finetune=Reference("org/tuned"),
    settings={"ranks": [8]},
    matrices=(matrix("a", "mlp.up_proj", 0.25), matrix("b", "<img src=x>", 0.75)),
    skipped=(Skipped("n", Outcome.NOT_A_MATRIX, "a norm", (4,), 1.0, 0.125),),
    verdict=Verdict(VerdictKind.FULL, ("tuned is a <b>full</b> finetune.", "Rank 8 keeps half.")),
    tool_version="0.1.0",
    created="2026-11-24T00:00:00+00:00",
)


def test_it_has_the_verdict_and_the_energy_kept_by_module() -> None:
    html = RUN._repr_html_()

    assert "Rank 8 keeps half." in html
    for cell in ("mlp.up_proj", "75 %", "25 %", "50 %", "100 %", "1 tensor (12 % of the whole change)"):
        assert cell in html
    assert html.count("<tr>") == 5


def test_it_is_escaped_and_has_neither_script_nor_style_sheet() -> None:
    html = replace(RUN, verdict=Verdict(VerdictKind.FULL, ("\x1b[2J\u202e",)))._repr_html_()

    assert "&lt;img src=x&gt;" in html
    assert [bad for bad in ("<img", "<b>", "<script", "<style", "\x1b", "\u202e") if bad in html] == []


def test_it_says_how_outputs_differ() -> None:
    outputs = Outputs("tuned", (), (), sentences=("Rank 64 is about as far as q4_0.",))

    assert "Rank 64 is about as far as q4_0." in replace(RUN, outputs=outputs)._repr_html_()


def test_other_results_have_a_short_text_and_their_sentences_as_html() -> None:
    hostile = "far\x1b[2J<b>"
    choice = BaseChoice(BaseKind.NONE, "None of them.", Reference("t"), (CandidateBase(Reference(hostile), 1.5),))
    outputs = Outputs("tuned", (), (CandidateResult(hostile, CandidateKind.MODEL),), sentences=("Rank 64 keeps half.",))
    for each, headline in ((choice, "None of them."), (outputs, "Rank 64 keeps half.")):
        assert len(repr(each)) < 120
        assert repr(each).isprintable()
        assert headline in each._repr_html_()
        assert "<b>" not in each._repr_html_()
    assert "150 %" in choice._repr_html_()


def test_parts_of_a_run_are_shown_on_their_own() -> None:
    up, hostile = RUN.matrices

    assert "a, 2 x 2" in up._repr_html_()
    assert "75 %" in up._repr_html_()
    assert "75 %" in up.losses[0]._repr_html_()
    assert "Rank 8 keeps half." in RUN.verdict._repr_html_()
    failed = replace(hostile, name="<img>", outcome=Outcome.NOT_FINITE, losses=())._repr_html_()
    assert Outcome.NOT_FINITE.sentence in failed
    assert "<img" not in failed
    assert "<table" not in failed


def test_a_run_without_losses_has_no_table() -> None:
    failed = replace(RUN.matrices[0], outcome=Outcome.NOT_FINITE, losses=())

    html = replace(RUN, matrices=(failed,))._repr_html_()
    assert "<table" not in html
    assert Outcome.NOT_FINITE.sentence in html
