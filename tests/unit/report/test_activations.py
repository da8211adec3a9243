"""The activation-weighted losses beside those of the weights: in the terminal, in the chart, in the tables."""

from dataclasses import replace
from typing import Any

import pytest
from builders import RANKS, model, results

from deltarank.report import page_html, terminal_summary
from deltarank.report.view.build import page_data
from deltarank.report.view.chart_rows import rank_rows
from deltarank.results import ActivationLoss, CalibrationText, Results


def calibrated(**changes: Any) -> Results:
    """Of the outputs, a third of the square of what the weights lose is lost."""
    matrices = [
        replace(each, activation_loss=ActivationLoss(4000, 2.0, tuple(x.energy_lost**2 / 3 for x in each.losses)))
        for each in model()
    ]
    return results(matrices, **{"calibration_text": CalibrationText("notes.txt", 12, 4096), **changes})


def test_both_losses_are_stated_and_tabulated() -> None:
    run = calibrated()
    words = " ".join(terminal_summary(run).split())
    whole = run.totals.whole
    assert whole.activation_loss is not None
    lost = 100 * whole.activation_loss.lost[RANKS.index(64)]

    assert (
        f"While the finetune reads notes.txt, 4,096 tokens, rank 64 loses {lost:.2g} % of what the change adds" in words
    )
    assert f"of the change in the weights it loses {100 * whole.loss(64).energy_lost:.2g} %." in words
    assert "Energy of the layers' outputs kept, in %, by LoRA rank" in words
    assert "While the finetune reads" not in terminal_summary(results())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits(width: int) -> None:
    assert max(map(len, terminal_summary(calibrated(), width=width).splitlines())) <= width


def test_the_chart_has_a_line_for_them_and_each_matrix_its_figure() -> None:
    page = page_data([calibrated()])
    [run] = page.runs
    rows = [row for row in rank_rows(page, run) if row["kind"] == "outputs"]

    assert [row["rank"] for row in rows] == list(RANKS)
    assert run.activations is not None
    assert [row["lost"] for row in rows] == list(run.activations.lost)
    first = run.matrices[0]
    assert first.activation_lost[0] == pytest.approx(first.lost[0] ** 2 / 3, rel=1e-3)  # type: ignore[operator]


def test_the_page_shows_them_only_where_they_were_measured() -> None:
    assert "Energy of the layers&#39; outputs kept" in page_html([calibrated()]).replace(
        "layers' outputs kept", "layers&#39; outputs kept"
    )
    assert 'class="activations"' not in page_html([results()])
    both = page_html([calibrated(), results(name="someone/Other-12b")])
    assert both.count('class="activations"') == 1
