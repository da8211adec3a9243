"""Pages and pictures of more runs than stand side by side."""

import struct
from dataclasses import replace

import pytest
from builders import model, results

from deltarank.report.charts.vega import Spec
from deltarank.report.drawing.draw import start_drawing
from deltarank.report.page.posters import posters
from deltarank.report.view.build import page_data
from deltarank.report.view.page import MOST_SIDE_BY_SIDE
from deltarank.results import Results

RUNS = 30
SHAPES = {"self_attn.q_proj": (16, 16), "mlp.up_proj": (32, 16)}
RANKS = (1, 8)


def runs(count: int, *, layers: int = 2) -> list[Results]:
    matrices = tuple(model(layers=layers, shapes=SHAPES, ranks=RANKS))
    first = results(matrices, ranks=RANKS)
    return [replace(first, finetune=replace(first.finetune, ref=f"a/body-{i:02}")) for i in range(count)]


@pytest.fixture(scope="module")
def pictures() -> dict[str, Spec]:
    return posters(page_data(runs(RUNS, layers=200)))


def size_of(chart: Spec) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = struct.unpack(">II", start_drawing(chart)()[16:24])
    return width, height


@pytest.mark.parametrize("name", ["heat-map.png", "loss-by-rank.png", "layers-mlp.png"])
def test_a_picture_of_many_runs_and_layers_can_be_looked_at(pictures: dict[str, Spec], name: str) -> None:
    width, height = size_of(pictures[name])

    assert width <= 3000
    assert height <= 6000


def test_few_runs_are_columns_and_many_are_rows() -> None:
    few, many = (page_data(runs(count)).weights_of_runs for count in (MOST_SIDE_BY_SIDE, RUNS))

    assert few is not None
    assert many is not None
    assert few.headings[0] == "rank"
    assert [row.name for row in many.rows] == [f"body-{i:02}" for i in range(RUNS)]
    assert many.headings == ("finetune", *(row.name for row in few.rows))
    assert many.rows[0].cells == tuple(row.cells[0] for row in few.rows)
    assert many.rank_indices == (None, 0, 1, None, None, None, None)


def test_of_more_cells_than_rows_the_worst_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltarank.report.view.matrices.MOST_LISTED_OF_ALL", 8)
    view = page_data(runs(2, layers=4)).runs[0]
    lost = {m.name: sum(loss.energy_lost for loss in m.losses) for m in runs(1, layers=4)[0].matrices}

    listed = {row.name for row in view.matrices}
    assert listed == set(sorted(lost, key=lambda name: -lost[name])[:4])
    assert view.unlisted == len(lost) - 4
