"""The page over very many matrices: every cell of the map, the worst lines of each, and a size that can be sent."""

from dataclasses import replace

import numpy as np
import pytest
from builders import RANKS, experts, losses_of, model, results

from deltarank.report import page_html
from deltarank.report.view.build import page_data
from deltarank.report.view.matrices import MOST_DETAILED, MOST_LISTED
from deltarank.results import MatrixResult, Results, Total


def many(layers: int, of_each: int, *, ranks: tuple[int, ...] = RANKS) -> Results:
    """So many experts a layer for each of three modules, beside the attention, each with losses of its own."""
    random = np.random.default_rng(0)
    rows: list[MatrixResult] = [m for m in model(layers=layers, ranks=ranks) if "attn" in m.module]
    known = experts(0, 1, ranks)[0]
    spectra = [np.exp(-np.arange(64) / (2 + 40 * random.random())) for _ in range(50)]
    losses = [losses_of(values, ranks, known.entries) for values in spectra]
    for layer in range(layers):
        for number in range(of_each):
            for module in ("gate_proj", "up_proj", "down_proj"):
                name = f"model.layers.{layer}.mlp.experts.{number}.{module}.weight"
                rows.append(
                    replace(
                        known,
                        name=name,
                        layer=layer,
                        module=f"mlp.experts.{module}",
                        losses=losses[int(random.integers(50))],
                    )
                )
    return results(rows, ranks=ranks)


@pytest.fixture(scope="module")
def run() -> Results:
    return many(8, 150)


def test_few_matrices_all_have_a_line() -> None:
    view = page_data([results(model(layers=3))]).runs[0]

    assert view.unlisted == 0
    assert sorted(i for cell in view.cells for i in cell.members) == list(range(len(view.matrices)))
    assert all(cell.matrices == len(cell.members) for cell in view.cells)


def test_of_many_each_cell_keeps_its_worst(run: Results) -> None:
    view = page_data([run]).runs[0]

    assert len(view.matrices) == MOST_LISTED
    assert view.unlisted == len(run.matrices) - MOST_LISTED > 0
    assert sum(cell.matrices for cell in view.cells) == len(run.matrices)
    assert all(cell.members for cell in view.cells)
    lost = {m.name: sum(x.energy_lost for x in m.losses) for m in run.matrices}
    listed = {row.name for row in view.matrices}
    for module in ("gate_proj", "up_proj", "down_proj"):
        names = [m.name for m in run.matrices if m.layer == 3 and m.module.endswith(module)]
        kept = [lost[name] for name in names if name in listed]
        gone = [lost[name] for name in names if name not in listed]
        assert min(kept) >= max(gone)


def test_a_cell_s_figure_is_of_all_its_matrices_listed_or_not(run: Results) -> None:
    view = page_data([run]).runs[0]
    for cell in view.cells:
        row = view.matrices[cell.members[0]]
        module = next(m.module for m in run.matrices if m.name == row.name)
        total = Total.of(m for m in run.matrices if m.layer == int(cell.layer) and m.module == module)

        assert cell.lost == pytest.approx([loss.energy_lost for loss in total.losses], abs=1e-4)


def test_lines_with_a_spectrum_are_the_worst_of_those_listed(run: Results) -> None:
    view = page_data([run]).runs[0]
    detailed = [sum(x or 0.0 for x in row.lost) for row in view.matrices if row.curve]
    others = [sum(x or 0.0 for x in row.lost) for row in view.matrices if not row.curve]

    assert len(detailed) == MOST_DETAILED
    assert min(detailed) >= max(others) - 1e-3  # rounded for the page


@pytest.mark.slow
def test_the_page_over_fifty_thousand_matrices_can_be_sent() -> None:
    big = many(64, 260)

    assert len(big.matrices) > 50_000
    assert len(page_html([big]).encode()) < 3_000_000
