"""What the page shows, by value: no markup is looked at here."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from builders import LLAMA, RANKS, experts, hostile, low_rank, matrix, merge, model, not_finite, results

from deltarank.report import page_html
from deltarank.report.view.build import page_data
from deltarank.report.view.chart_rows import as_columns, cosine_axis_end, line_end_rows, spread_out
from deltarank.report.view.headline import plain_text
from deltarank.report.view.matrices import MOST_DETAILED, log_spaced
from deltarank.report.view.modules import ModuleGroup, arrange_modules, group_of
from deltarank.report.view.page import PageData
from deltarank.report.view.text import NO_BREAK, rounded_share, terse_percent
from deltarank.results import Outcome, escape, shorten


def sentences(page: PageData) -> list[str]:
    return [plain_text(headline).replace(NO_BREAK, " ") for headline in page.headlines]


def unchanged(layers: int = 2) -> list:
    return [replace(m, **_zero(m)) for m in model(layers=layers)]


def _zero(m) -> dict:
    same = matrix(m.name, layer=m.layer, module=m.module, shape=m.shape, values=np.zeros(min(m.shape)))
    return {name: getattr(same, name) for name in ("outcome", "losses", "frobenius", "singular_values", "curve")}


class TestHeadline:
    def test_one_run_says_how_much_is_kept_at_each_rank(self):
        run = results()
        page = page_data([run])
        kept = run.totals.whole.loss(64).energy_kept
        said = f"As a rank-64 LoRA, Bigger-Body-12b keeps {100 * kept:.0f} % of the change in the "
        hold = 1 - sum(each.share or 0 for each in run.skipped)
        part = f"measured matrices, which hold {100 * hold:.0f} % of the whole change."
        assert sentences(page)[page.ranks.index(64)] == said + part
        assert sentences(page_data([replace(run, skipped=())]))[page.ranks.index(64)] == said + "weights."
        assert len(RANKS) == len(set(sentences(page)))

    def test_three_runs_are_named(self):
        page = page_data([results(model(low_rank), name="a/Lora"), results(name="a/Full"), results(name="a/Merge")])
        assert sentences(page)[3].startswith("As a rank-64 LoRA, Lora keeps over 99.9 %, Full ")

    def test_four_runs_are_counted(self):
        page = page_data([results(name=f"a/{i}") for i in range(4)])
        assert "these 4 finetunes keep " in sentences(page)[0]

    def test_the_model_name_is_a_phrase_of_its_own(self):
        assert [p.text for p in page_data([results()]).headlines[0] if p.is_name] == ["Bigger-Body-12b"]

    def test_nothing_changed(self):
        assert "changed nothing" in sentences(page_data([results(unchanged(), skipped=())]))[0]
        assert "all of its change is in tensors that were not" in sentences(page_data([results(unchanged())]))[0]

    def test_nothing_measured(self):
        assert set(sentences(page_data([results([])]))) == {"Nothing could be measured."}

    def test_figures_name_the_worst_module_and_energy_beside_cosine(self):
        page = page_data([results()])
        text = page.figures[page.default_index].replace(NO_BREAK, " ")
        assert "% of the energy is lost" in text
        assert "cosine distance" in text
        assert "mlp.down_proj loses most" in text

    def test_a_rank_that_vllm_does_not_accept_is_noted(self):
        page = page_data([results(model(ranks=(8, 24)), ranks=(8, 24))])
        assert page.servable == (True, False)
        assert "vLLM serves rank 24 in a slot of rank 32." in page.figures[1]
        assert "vLLM" not in page.figures[0]


class TestDefaultRank:
    def test_it_is_64_where_64_was_measured(self):
        assert page_data([results()]).default_rank == 64

    def test_it_is_the_nearest_rank_otherwise(self):
        assert page_data([results(model(ranks=(4, 48)), ranks=(4, 48))]).default_rank == 48

    def test_a_rank_that_one_run_lacks_is_unknown_there(self):
        page = page_data([results(), results(model(ranks=(64,)), ranks=(64,), name="a/Other")])
        assert tuple(RANKS) == page.ranks
        assert [loss is not None for loss in page.runs[1].losses] == [rank == 64 for rank in RANKS]
        assert page.runs[1].cells[0].lost[0] is None

    def test_no_run_no_page(self):
        with pytest.raises(ValueError, match="at least one run"):
            page_data([])


class TestCells:
    def test_a_cell_a_layer_and_module(self):
        page = page_data([results()])
        assert 4 * len(LLAMA) == len(page.runs[0].cells)
        assert tuple("0123") == page.layers

    def test_the_loss_of_experts_is_that_of_all_taken_as_one(self):
        rows = experts(0, 4)
        cell = page_data([results(rows)]).runs[0].cells[0]
        lost = math.fsum(m.energy * m.loss(64).energy_lost for m in rows) / math.fsum(m.energy for m in rows)
        assert cell.members == (0, 1, 2, 3)
        assert cell.lost[3] == pytest.approx(lost, rel=1e-3)

    def test_nan_has_a_reason_and_no_loss(self):
        rows = model(layers=1)
        cell = page_data([results([not_finite(rows[0]), *rows[1:]])]).runs[0].cells[0]
        assert (None,) * len(RANKS) == cell.lost
        assert cell.reason == "3 of its entries are NaN"
        assert (cell.missing, cell.unchanged) == (1, False)

    def test_an_identical_matrix_is_not_shown_as_kept(self):
        cell = page_data([results([*unchanged(1), *model(layers=1)[:1]])]).runs[0].cells[1]
        assert cell.unchanged

    def test_no_layer_comes_last(self):
        rows = [
            *model(layers=2),
            matrix("lm_head.weight", layer=None, module="lm_head", shape=(64, 32), values=np.ones(32)),
        ]
        page = page_data([results(rows)])
        assert page.layers == ("0", "1", "–")
        assert page.runs[0].cells[-1].layer == "–"

    def test_shares_of_the_change_add_up_to_one(self):
        run = page_data([results()]).runs[0]
        assert math.fsum(row.share for row in run.modules) == pytest.approx(1, rel=1e-3)


class TestMatrices:
    def test_curve_and_spectrum_are_thinned_out_with_their_ends(self):
        row = page_data([results(model(layers=1))]).runs[0].matrices[0]
        assert row.spectrum[0][0] == 1
        assert row.spectrum[-1][0] == 1024
        assert len(row.spectrum) <= 48
        assert {*RANKS} <= {rank for rank, _ in row.curve}

    def test_only_the_largest_losses_of_very_many_carry_details(self):
        rows = [m for layer in range(10) for m in experts(layer, 128)]
        made = page_data([results(rows)]).runs[0].matrices
        assert sum(bool(row.spectrum) for row in made) == MOST_DETAILED
        assert len(rows) == len(made)

    def test_a_loss_just_under_all_never_reads_all(self):
        assert (rounded_share(0.99999999), rounded_share(1.0), rounded_share(1.0000001)) == (0.9999, 1.0, 1.0)
        assert terse_percent(1e-9) == "<0.1"


class TestModules:
    @pytest.mark.parametrize(
        ("name", "group"),
        [
            ("self_attn.q_proj", ModuleGroup.ATTENTION),
            ("attn.c_attn", ModuleGroup.ATTENTION),
            ("mlp.c_proj", ModuleGroup.MLP),
            ("block_sparse_moe.experts.w1", ModuleGroup.MLP),
            ("lm_head", ModuleGroup.OTHER),
        ],
    )
    def test_groups(self, name, group):
        assert group is group_of(name)

    def test_reading_order(self):
        names = [module.name for module in arrange_modules(dict.fromkeys(reversed(LLAMA), 1.0))]
        assert list(LLAMA) == names

    def test_modules_over_the_palette_are_grey(self):
        made = arrange_modules({f"mlp.part{i}": float(i) for i in range(9)})
        assert sum(module.style is not None for module in made) == 4
        assert made[-1].style is not None


class TestLeftOut:
    def test_by_reason_with_the_share_largest_first(self):
        groups = page_data([results()]).runs[0].left_out
        assert [group.count for group in groups] == [1, 4, 1]
        assert groups[0].share == pytest.approx(0.041)
        assert groups[1].share == pytest.approx(4 * 0.0004)
        assert groups[2].share is None
        assert groups[2].unread == 1

    def test_a_matrix_that_could_not_be_measured_is_among_them(self):
        rows = model(layers=1)
        groups = page_data([results([not_finite(rows[0]), *rows[1:]], skipped=())]).runs[0].left_out
        assert [Outcome.NOT_FINITE.sentence] == [group.sentence for group in groups]


class TestProvenance:
    def test_how_it_was_measured(self):
        provenance = page_data([results()]).runs[0].provenance
        facts = dict(provenance.facts)
        assert provenance.command.startswith("deltarank compare ")
        assert facts["solver"] == "auto: 28 by exact"
        assert facts["tolerance"] == "0.0002"
        assert "at revision a1b2c3d" in facts["finetune"]
        assert facts["time"] == "5 min 12 s"
        assert provenance.audit.rows[0].cells == ("64", "0.412000", "0.412000", "3.0e-8")


class TestRuns:
    def test_labels_are_unique(self):
        same = [results(name="a/Model"), results(name="a/Model")]
        assert [run.label for run in page_data(same).runs] == ["a/Model (1)", "a/Model (2)"]
        near = [results(name="a/Model"), results(name="b/Model")]
        assert [run.label for run in page_data(near).runs] == ["a/Model", "b/Model"]

    def test_one_axis_for_the_articles_charts_of_all_runs(self):
        page = page_data([results(model(low_rank), name="a/L"), results(model(merge), name="a/M")])
        worst = max(share for run in page.runs for cell in run.cells for share in cell.lost)
        assert 1 - math.sqrt(1 - worst) <= cosine_axis_end(page)
        assert cosine_axis_end(page, page.default_index) <= cosine_axis_end(page)


class TestText:
    def test_nothing_can_turn_or_hide_its_neighbours(self):
        assert escape("a\u202eb\nc\u200bd\ud800") == "a\\u202eb\\nc\\u200bd\\ud800"

    def test_both_ends_of_a_long_name_stay(self):
        assert shorten("abcdefghij", most=5) == "ab…ij"

    def test_names_at_line_ends_stand_apart_and_inside(self):
        placed = spread_out([0.9, 0.9, 0.02, 0.01, 0.0], 0.1)
        assert all(a - b >= 0.1 - 1e-9 for a, b in pairwise(placed))
        assert 0 <= placed[-1] <= placed[0] <= 1

    def test_too_many_names_share_the_room(self):
        assert spread_out([0.5, 0.5, 0.5], 0.9) == [1.0, 0.5, 0.0]

    def test_no_rows_no_columns(self):
        assert as_columns([]) == {}
        assert line_end_rows([], gap=0.1) == []

    def test_log_spaced(self):
        assert log_spaced(3, 48) == [1, 2, 3]
        assert log_spaced(0, 48) == []
        assert len(log_spaced(5000, 48)) <= 48


def test_hostile_names_are_data_like_any_other():
    page = page_data([hostile()])
    text = repr(page)
    assert "\u202e" not in text
    assert "\u2028" not in text
    assert all(len(module.label) <= 40 for module in page.modules)


@pytest.mark.parametrize(
    ("key", "value"),
    [("command", 5), ("command", ["deltarank", 5]), ("seconds", 10**400)],
    ids=["number", "list", "huge"],
)
def test_settings_that_somebody_edited_are_shown_and_break_nothing(key: str, value: object) -> None:
    run = results()
    html = page_html([replace(run, settings={**run.settings, key: value})])

    assert "</html>" in html
