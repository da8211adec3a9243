"""Outputs on the page, in the terminal and in pictures: by value, from invented divergences."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from builders import hostile, low_rank, model, results
from outputs_builders import KLD, OWN, WIKI, attribution, candidate, hostile_outputs, logits, outputs
from page_reader import PageReader

from deltarank.report import page_html, terminal_summary, write_report
from deltarank.report.document.render import embedded_json
from deltarank.report.page.payload import TOKEN_STEPS, charts, payload
from deltarank.report.view.build import page_data
from deltarank.report.view.divergence_rows import (
    confidence_rows,
    document_rows,
    kld_span,
    name_rows,
    part_rows,
    point_rows,
    round_span,
    round_ticks,
    token_rows,
)
from deltarank.report.view.headline import plain_text
from deltarank.report.view.outputs import outputs_view
from deltarank.report.view.samples import FINETUNE_AGAIN_INDEX, MOST_PIECES
from deltarank.results import CandidateKind, Interval, Outputs, Sample, SliceScore

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
ONE = results(model(layers=2), outputs=outputs())
THREE = [
    results(model(low_rank, layers=2), name="a/Lora", outputs=outputs(scale=0.01)),
    results(model(layers=2), name="a/Full", outputs=outputs(unit="module")),
    results(model(layers=2), name="a/Silent"),
]


class TestWithout:
    def test_a_page_without_outputs_has_nothing_of_them(self):
        html = page_html([results(model(layers=2))])
        for trace in ('id="outputs"', "outputsOf = ", "--k1", "outputs-at-rank", 'data-chart="kld"'):
            assert trace not in html
        assert '"outputs":null' in html


class TestView:
    def test_each_rank_shows_the_measured_rank_or_the_nearest(self):
        view = outputs_view(outputs(names=["rank 16", "rank 64", "any rank", "base"]), (8, 16, 31, 32, 64, 512))
        assert [view.candidates[at_rank.index].name for at_rank in view.at_rank] == [
            "rank 16",
            "rank 16",
            "rank 16",
            "rank 16",  # as near as 64 by ratio: the smaller
            "rank 64",
            "rank 64",
        ]
        assert [at_rank.is_exact for at_rank in view.at_rank] == [False, True, False, False, True, False]

    def test_without_rank_candidates_no_rank_shows_one(self):
        view = outputs_view(outputs(names=["base", "q4_0", "any rank"]), RANKS)
        assert {at_rank.index for at_rank in view.at_rank} == {None}
        assert view.rank_sentences[0] == "Outputs were not measured at rank 8."

    def test_a_rank_that_only_outputs_have_can_be_selected(self):
        run = results(model(layers=1), ranks=(8, 512), outputs=outputs())
        page = page_data([run])
        assert page.ranks == (8, 16, 32, 64, 128, 256, 512)
        assert page.default_rank in (8, 512)

    def test_the_own_answers_are_shown_first(self):
        made = outputs()
        view = outputs_view(replace(made, texts=made.texts[::-1]), RANKS)
        assert view.texts[view.default_text].name == OWN

    @pytest.mark.parametrize(
        ("rank", "beside"), [(8, "more than q4_0"), (64, "more than q4_0"), (128, "between q8_0 and nf4")]
    )
    def test_a_rank_is_compared_with_the_nearest_yardsticks(self, rank, beside):
        line = outputs_view(outputs(), RANKS).rank_sentences[RANKS.index(rank)].replace("\u00a0", " ")
        assert f"({beside})" in line
        assert (
            f"At rank {rank}, the KL divergence from the finetune is {KLD[f'rank {rank}']:.3g} nats per token" in line
        )

    def test_nearer_than_every_yardstick_and_none_at_all(self):
        near = outputs_view(outputs(names=["rank 8", "base"]), RANKS).rank_sentences[0]
        assert "(" not in near.split(";")[0]
        made = outputs(names=["rank 8", "q4_0"])
        low = replace(made, candidates=(replace(candidate("rank 8", 0.001)), made.candidates[1]))
        assert "(less than q4_0)" in outputs_view(low, RANKS).rank_sentences[0]

    def test_farther_than_the_base_reads_as_a_loss_and_not_as_a_share(self):
        made = outputs(names=["base", "rank 8"])
        worse = replace(made.candidates[1].logits[0], kept=Interval(-0.2, -0.3, -0.1))
        view = outputs_view(replace(made, candidates=(replace(made.candidates[1], logits=(worse,)),)), RANKS)
        assert "\u221220\u00a0% of the behaviour is kept" in view.rank_sentences[0]

    def test_equal_names_are_numbered(self):
        made = outputs(names=["q4_0"])
        twice = replace(made, candidates=(made.candidates[0],) * 2)
        assert [c.name for c in outputs_view(twice, RANKS).candidates] == ["q4_0", "q4_0 (2)"]

    def test_a_text_that_a_candidate_was_not_scored_on_is_none(self):
        made = outputs(names=["rank 8"])
        lone = replace(made, candidates=(replace(made.candidates[0], logits=made.candidates[0].logits[1:]),))
        view = outputs_view(lone, RANKS)
        assert view.candidates[0].logits[0] is None
        assert view.rank_sentences[0] == f"Outputs were not measured at rank 8 on {OWN}."
        assert view.logits_tables[0] is None

    def test_answers_are_held_against_the_finetunes(self):
        view = outputs_view(outputs(), RANKS)
        sample = view.samples[0]
        assert "".join(sample.answer).startswith("The lantern on the quay")
        names = {view.candidates[i].name if i != FINETUNE_AGAIN_INDEX else "finetune again" for i in sample.others}
        assert names == {"finetune again", *KLD} - {"finetune, rounded"}
        assert sample.others[FINETUNE_AGAIN_INDEX].same_first_words == 0

    def test_a_missing_answer_is_left_out(self):
        made = outputs(samples=(Sample("p", "chat", {"rank 64": "x", "someone else": "y"}),))
        view = outputs_view(made, RANKS)
        assert view.samples[0].answer == ()
        assert list(view.samples[0].others) == [5]

    def test_long_texts_are_cut(self):
        made = outputs()
        long = replace(made.excerpts[0], pieces=("x",) * 9000, kld={"base": (0.1,) * 9000, "nobody": (1.0,)})
        view = outputs_view(replace(made, excerpts=(long,) * 50, samples=made.samples * 50), RANKS)
        assert len(view.excerpts) == 12
        assert {len(each.pieces) for each in view.excerpts} == {MOST_PIECES} == {len(view.excerpts[0].kld[1])}
        assert len(view.samples) == 24

    def test_lines_of_text_stay_lines_and_hidden_marks_are_shown(self):
        made = outputs()
        pieces = ("a\r\nb\tc", "\u202edef", "\u200b")
        odd = replace(made.excerpts[0], pieces=pieces, kld={"base": (None, math.nan, 0.1)})
        found = outputs_view(replace(made, excerpts=(odd,)), RANKS).excerpts[0]
        assert found.pieces == ("a\nb\tc", "\\u202edef", "\\u200b")
        assert found.kld[1] == (None, None, 0.1)


class TestProvenance:
    def test_each_command_of_a_run_that_candidates_were_added_to_has_a_line(self):
        commands = ("deltarank outputs base tuned --ranks 8", "deltarank outputs base tuned --ranks 16")
        settings = {**outputs().settings, "command": "\n".join(commands)}
        page = page_html([results(outputs=outputs(settings=settings))])
        assert f"<pre>{commands[0]}\n{commands[1]}</pre>" in page


class TestRows:
    PAGE = page_data([ONE])
    VIEW = PAGE.runs[0].outputs

    def test_ranks_are_points_and_what_has_none_is_a_reference_line(self):
        points = point_rows(self.VIEW, 0)
        assert [row["name"] for row in points if row["kind"] == "rank"] == [f"rank {2**i}" for i in range(3, 9)]
        assert [row["name"] for row in points if row["kind"] == "other"] == [
            "someone's adapter",
            "truncation alone at rank 64",
        ]
        names = name_rows(self.VIEW, 0, kld_span(self.PAGE.outputs))
        assert [(row["name"], row["short_name"]) for row in names if row["rank"] is not None] == [
            ("someone's adapter", "someone's adapter"),
            ("truncation alone at rank 64", "truncation at rank 64"),
        ]
        references = [row for row in names if row["rank"] is None]
        assert [row["name"] for row in references] == ["base", "q4_0", "nf4", "any rank", "q8_0"]
        assert [row["kld"] for row in references] == pytest.approx([0.62, 0.052, 0.048, 0.004, 0.0014])

    def test_names_of_lines_that_lie_close_stand_apart_in_their_order(self):
        low, high = kld_span(self.PAGE.outputs)
        heights = [
            math.log(row["label_y"] / low) / math.log(high / low) for row in name_rows(self.VIEW, 0, (low, high))
        ]
        assert all(a - b >= 0.0549 for a, b in pairwise(heights))
        assert all(0 <= height <= 1 for height in heights)

    def test_a_quantisation_far_nearer_than_any_rank_is_an_arrow_and_no_longer_axis(self):
        made = outputs(names=["base", "rank 8", "q4_0", "q8_0"])
        near = candidate("q8_0", 1e-7)
        page = page_data([results(model(layers=1), outputs=replace(made, candidates=(*made.candidates[:3], near)))])
        span = kld_span(page.outputs)
        assert span[0] >= 0.01
        row = name_rows(page.runs[0].outputs, 0, span)[-1]
        assert (row["name"], row["kld"]) == ("q8_0 \u2193", span[0])
        assert "1.0e-7 nats per token" in row["tooltip"]

    def test_what_is_zero_has_no_place_on_a_log_axis(self):
        made = outputs(names=["rank 8", "q8_0"])
        none = replace(made.candidates[0].logits[0].kld, mean=0.0)
        candidates = tuple(replace(c, logits=(replace(c.logits[0], kld=none),)) for c in made.candidates)
        page = page_data([results(model(layers=1), outputs=replace(made, candidates=candidates))])
        assert point_rows(page.runs[0].outputs, 0) == []
        assert name_rows(page.runs[0].outputs, 0, (0.01, 1.0)) == []
        assert page_html([results(model(layers=1), outputs=replace(made, candidates=candidates))])

    @pytest.mark.parametrize(
        ("values", "span"),
        [([0.0014, 0.62], (0.001, 1.0)), ([0.2, 3], (0.2, 5.0)), ([], (0.01, 1.0)), ([0.0, None, 0.02], (0.01, 0.04))],
    )
    def test_an_axis_holds_its_values_and_ends_at_a_round_one(self, values, span):
        assert round_span(values) == pytest.approx(span)

    @pytest.mark.parametrize("span", [(0.001, 1.0), (1e-9, 50.0), (0.2, 0.5), (1e-3, 2e-3)])
    def test_an_axis_has_few_round_ticks_within(self, span):
        found = round_ticks(span)
        assert 2 <= len(found) <= 12
        assert all(span[0] * 0.99 <= tick <= span[1] * 1.01 for tick in found)

    def test_shares_of_a_histogram_are_of_all_tokens(self):
        found = logits("t", 0.1, own=False, base=None)
        assert sum(row["share"] for row in token_rows(found)) == pytest.approx(1, abs=1e-3)
        assert token_rows(replace(found, histogram=None)) == []

    def test_slices_say_where_and_how_many(self):
        slices = (SliceScore(0, 0.25, 30, 0.4), SliceScore(0.25, 0.5, 0, 0.0), SliceScore(0.5, 1, 90, 0.1))
        rows = confidence_rows(replace(logits("t", 0.1, own=False, base=None), by_confidence=slices))
        assert [(row["label"], row["share"], row["kld"]) for row in rows] == [
            ("0–25", "25 %", 0.4),
            ("50–100", "75 %", 0.1),
        ]
        assert rows[0]["tooltip"].startswith("where the finetune's top probability is 0 to 25 %")

    def test_axes_end_where_what_is_shown_and_the_base_end(self):
        """Not where a candidate ends that is nearer by far: both would be pressed to the side."""
        found = payload(self.PAGE)["runs"][0]["outputs"]["by_text"][0]["candidates"]
        names = [candidate.name for candidate in self.VIEW.candidates]
        base = self.VIEW.candidates[names.index("base")].logits[0]
        for name in ("rank 64", "q8_0"):
            shown = self.VIEW.candidates[names.index(name)].logits[0]
            axis = found[names.index(name)]["axes"]
            places = [part.kld for each in (shown, base) for part in (*each.by_position, *each.by_confidence)]
            assert axis["low"] <= min(places)
            assert axis["low"] > min(places) / 10
            assert axis["high"] >= max(places)
            assert all(axis["low"] <= tick <= axis["high"] for tick in axis["ticks"])

    @pytest.mark.parametrize(("text", "cut"), [("It ends.", False), ("It goes", True), ("It ends.\n", False)])
    def test_a_text_without_a_full_stop_is_marked_as_cut(self, text, cut):
        made = outputs()
        found = outputs_view(replace(made, excerpts=(replace(made.excerpts[0], pieces=(text,)),)), RANKS)
        assert found.excerpts[0].is_cut is cut

    def test_documents_stand_nearest_first(self):
        rows = document_rows(logits(OWN, 0.1, own=True, base=None))
        assert len(rows) == 12
        assert [row["kld"] for row in rows] == sorted(row["kld"] for row in rows)
        assert [row["number"] for row in rows] == list(range(1, 13))

    def test_of_very_many_documents_the_farthest_is_shown(self):
        made = logits(OWN, 0.1, own=True, base=None)
        many = tuple(replace(made.by_document[0], kld=i + 1.0) for i in range(5000))
        rows = document_rows(replace(made, by_document=many))
        assert len(rows) <= 400
        assert rows[-1]["kld"] == 5000
        assert rows[0]["number"] < rows[1]["number"]

    def test_parts_stand_largest_first_with_shares_of_the_sum(self):
        rows = part_rows(outputs_view(outputs(), RANKS).attribution[0], ())
        assert [row["kld"] for row in rows] == sorted((row["kld"] for row in rows), reverse=True)
        assert sum(row["share_kld"] for row in rows) == pytest.approx(1, abs=1e-3)
        assert [row["is_named"] for row in rows[:4]] == [True, True, True, False]
        assert re.fullmatch(r"\d [a-z_]+\.[a-z_]+", rows[0]["name"])

    def test_intervals_of_parts_are_said_and_drawn(self):
        made = replace(attribution(64, "module"), together_low=0.1, together_high=0.4, rank_correlation_low=-0.2)
        view = outputs_view(outputs(attribution=(made,)), RANKS).attribution[0]
        row = part_rows(view, ())[0]
        assert (row["low"], row["high"]) == pytest.approx((0.8 * row["kld"], 1.2 * row["kld"]), rel=1e-2)
        assert "nats per token (95\N{NO-BREAK SPACE}% interval 0.1 to 0.4)." in view.sentence
        assert "the KLD: 0.81, where" in view.sentence  # an interval has two ends

    @pytest.mark.parametrize(("unit", "mapped"), [("matrix", True), ("module", False), ("layer", False)])
    def test_a_map_needs_layers_and_modules(self, unit, mapped):
        assert outputs_view(outputs(unit=unit), RANKS).attribution[0].has_map is mapped

    def test_attribution_without_any_kld_is_drawn(self):
        still = attribution(64, "matrix")
        still = replace(
            still, parts=tuple(replace(p, kld=0.0, share_lost=0.0) for p in still.parts), rank_correlation=None
        )
        run = results(model(layers=1), outputs=outputs(attribution=(still,)))
        assert page_html([run])
        assert "correlation" not in page_data([run]).runs[0].outputs.attribution[0].sentence


class TestTables:
    VIEW = outputs_view(outputs(), RANKS)
    TABLE = VIEW.logits_tables[0]

    def test_columns_carry_the_names_that_llama_cpp_gives(self):
        known = {
            "Mean KLD",
            "Max",
            "99.9\u00a0%",
            "99\u00a0%",
            "95\u00a0%",
            "90\u00a0%",
            "Median",
            "RMS Δp",
            "Same top p",
            "PPL",
        }
        assert known | {"ln(PPL ratio)"} <= {*self.TABLE.headings}

    def test_a_row_a_candidate_with_the_figures_under_their_names(self):
        rows = self.TABLE.rows
        assert [row.name for row in rows] == list(KLD)
        row = dict(zip(self.TABLE.headings[1:], rows[5].cells, strict=True))
        found = self.VIEW.candidates[5].logits[0]
        assert row["Mean KLD"] == "0.071"
        assert row["Max"] == f"{found.kld.max:.3g}"
        assert row["99.9\u00a0%"] == f"{found.kld.p999:.3g}"
        assert row["Median"] == f"{found.kld.median:.3g}"
        assert row["PPL"] == f"{found.ppl:.3g}"
        assert row["Mean Δp"] == "\u22120.355\u00a0%"
        assert row["kept"] == "89\u00a0%"
        assert rows[5].rank_index == RANKS.index(64)
        assert rows[1].rank_index is None

    def test_the_writing_table_begins_with_a_second_run_of_the_finetune(self):
        names = [row.name for row in self.VIEW.writing_table.rows]
        assert names[:3] == ["finetune, other seeds", "base", "rank 8"]
        assert "finetune, rounded" not in names

    def test_similarity_of_texts_has_a_column_only_if_it_tells_the_base_from_a_second_run(self):
        for p, is_shown in ((0.01, True), (0.4, False)):
            run = results(outputs=outputs(similarity_p=p))
            table = page_data([run]).runs[0].outputs.writing_table
            assert ("similarity (cosine)" in table.headings) is is_shown
            assert {len(row.cells) + 1 for row in table.rows} == {len(table.headings)}
            assert ("left out" in table.caption) is not is_shown
            assert ("TF-IDF" in terminal_summary(run)) is is_shown

    def test_runs_are_columns_ranks_first(self):
        ranked, others = page_data(THREE).outputs_of_runs.groups
        assert [line.name for line in ranked] == ["8", "16", "32", "64", "128", "256"]
        assert ranked[3].cells == (("89\u00a0%", "7.1e-4"), ("89\u00a0%", "0.071"), "–")
        assert [line.name for line in others] == [name for name in KLD if not name.startswith("rank ")]


class TestPage:
    def test_the_headline_is_about_the_behaviour_where_it_was_measured(self):
        page = page_data([ONE])
        at = {
            rank: plain_text(headline).replace("\u00a0", " ")
            for rank, headline in zip(page.ranks, page.headlines, strict=True)
        }
        assert at[64] == (
            "As a rank-64 LoRA, Bigger-Body-12b keeps 89 % of its behaviour: 0.071 nats per token from the finetune; "
            "the base is 0.62 away, q4_0 0.052, nf4 0.048."
        )
        unmeasured = next(rank for rank in page.ranks if f"rank {rank}" not in KLD)
        assert at[unmeasured].endswith("of the whole change.")
        assert plain_text(page.weights_headline).endswith("of the whole change.")

    def test_several_headlines_are_about_the_behaviour_only_if_all_have_it(self):
        def at_64(*runs):
            page = page_data(runs)
            return plain_text(page.headlines[page.ranks.index(64)]).replace("\u00a0", " ")

        assert at_64(ONE, ONE).endswith(" keeps 89 % and someone/Bigger-Body-12b (2) 89 % of their behaviour.")
        assert at_64(*[ONE] * 4) == "As rank-64 LoRAs, these 4 finetunes keep 89 % of their behaviour."
        assert at_64(ONE, results(name="a/other")).endswith("of the change in the matrices that were measured.")

    def test_a_rank_farther_than_the_base_is_said_to_be(self):
        at_64 = next(c for c in ONE.outputs.candidates if c.rank == 64)
        worse = tuple(replace(on, kept=Interval(-0.2, None, None)) for on in at_64.logits)
        candidates = tuple(replace(c, logits=worse) if c is at_64 else c for c in ONE.outputs.candidates)
        page = page_data([replace(ONE, outputs=replace(ONE.outputs, candidates=candidates))])
        assert " is farther from the finetune than the base: 0.071 nats " in plain_text(
            page.headlines[page.default_index]
        )

    def test_the_first_screen_is_about_the_outputs_and_they_come_before_the_weights(self):
        html = page_html([ONE]).replace("\u00a0", " ")
        header = html.split("<section")[0]
        assert "keeps 89 % of its behaviour" in header
        assert "At rank 64, the KL divergence from the finetune is 0.071 nats per token" in header
        assert "Only the weights were measured" not in html
        assert "Only the weights were measured" in page_html([results()])
        order = [html.index(f'<section id="{name}"') for name in ("outputs", "reading", "tokens", "map", "table")]
        assert order == sorted(order)

    def test_tables_stand_without_script(self):
        html = page_html([ONE])
        text = PageReader(html).words
        assert 'class="text"' in html
        assert "Mean KLD 95 % interval kept Max 99.9 % 99 % 95 % 90 % Median" in text
        assert "An ideal judge needs about 42 tokens" in text
        assert f"{WIKI}: 12 documents, 4,000 tokens scored" in text
        assert "Sampling at temperature 1, no top-p." in text

    def test_runs_with_and_without_outputs_stand_together(self):
        html = page_html(THREE)
        assert html.count('data-chart="kld"') == 2
        assert "not measured" in PageReader(html).words

    def test_only_texts_that_there_are_can_be_chosen(self):
        made = outputs()
        one = replace(made, texts=made.texts[:1])
        assert 'class="text"' not in page_html([results(model(layers=1), outputs=one)])

    @pytest.mark.parametrize(
        "changes",
        [
            {"candidates": ()},
            {"texts": (), "candidates": ()},
            {"texts": ()},
            {"sentences": ()},
            {"samples": (), "excerpts": (), "attribution": (), "again": None},
            {"candidates": (candidate("base", 0.6),)},
            {"candidates": (candidate("finetune, rounded", 0.0001),)},
        ],
        ids=["nobody", "nothing", "no texts", "no sentences", "logits alone", "base alone", "control alone"],
    )
    def test_a_page_for_any_outputs(self, changes):
        run = results(model(layers=1), outputs=outputs(**changes))
        assert page_html([run]).rstrip().endswith("</html>")
        assert terminal_summary(run)

    def test_it_stays_under_3_mb_with_all_that_it_takes(self):
        made = outputs()
        names = [c.name for c in made.candidates if c.kind.answers_prompts]
        words, nats = "word " * 4000, (0.123,) * 900
        full = replace(
            made,
            samples=(Sample("p" * 4000, "c", {"finetune": words, **dict.fromkeys(names, words)}),) * 40,
            excerpts=(replace(made.excerpts[0], pieces=(" word",) * 900, kld=dict.fromkeys(names, nats)),) * 40,
            attribution=tuple(attribution(rank, "matrix", layers=80) for rank in RANKS),
        )
        html = page_html([results(model(layers=80), outputs=full)])
        assert len(html.encode()) < 3_000_000

    def test_hostile_text_is_text(self):
        html = page_html([replace(hostile(), outputs=hostile_outputs())])
        tags = re.findall(r"<([a-z]+)", html.split("<script")[0])
        assert not {*tags} & {"img", "iframe", "object", "embed", "link", "form"}
        assert "{{7*7}}" in PageReader(html).words

    def test_the_script_gets_numbers_and_no_nan(self):
        made = outputs()
        strange = replace(made.candidates[2].logits[0], by_position=(SliceScore(0, 16, 5, math.nan),), ppl=math.inf)
        odd = replace(made, candidates=(*made.candidates[:2], replace(made.candidates[2], logits=(strange,))))
        data = payload(page_data([results(model(layers=1), outputs=odd)]))
        json.loads(embedded_json(data), parse_constant=pytest.fail)

    def test_charts_are_known_by_name(self):
        of_tokens = {"tokens", "position", "confidence", "documents"}
        of_parts = {"bars", "scatter", "parts", "parts_tall"}
        with_outputs, without = (charts(page_data([replace(ONE, outputs=found)])) for found in (ONE.outputs, None))
        assert {"kld", "kld_narrow", *of_tokens, *of_parts} == {*with_outputs} - {*without}

    def test_the_legend_of_the_tokens_has_a_colour_a_step(self):
        style = (Path(__file__).parents[3] / "src/deltarank/report/page/outputs.css").read_text()
        for number in range(1, len(TOKEN_STEPS) + 1):
            assert style.count(f"--k{number}:") == 2  # light and dark
            assert f".k{number} {{ background: var(--k{number}); }}" in style

    def test_notes_on_candidates_are_shown_once_under_the_table(self):
        made = outputs()
        noted = tuple(replace(c, note="W0 + D_r in the matrices") for c in made.candidates if c.rank)
        found = outputs_view(replace(made, candidates=noted), RANKS).candidate_notes
        again = "the finetune with other seeds: the effect of sampling alone"
        assert [note for _, note in found] == ["W0 + D_r in the matrices", again]
        assert found[0][0].startswith("rank 8, rank 16")
        text = PageReader(page_html([results(model(layers=1), outputs=replace(made, candidates=noted))])).words
        assert text.count("W0 + D_r in the matrices") == 1


class TestElsewhere:
    @pytest.mark.parametrize("width", [60, 80, 100])
    def test_the_terminal_fits(self, width):
        for run in (ONE, replace(hostile(), outputs=hostile_outputs())):
            assert max(map(len, terminal_summary(run, width=width).splitlines())) <= width

    def test_a_narrow_terminal_shows_the_behaviour_kept_before_a_quantile(self):
        lines = terminal_summary(ONE, width=60).splitlines()
        header = next(line for line in lines if line.startswith("candidate"))
        assert header.split() == ["candidate", "Mean", "KLD", "Same", "top", "p", "kept"]

    def test_the_terminal_has_a_line_a_candidate(self):
        lines = terminal_summary(ONE, width=100).splitlines()
        row = next(line for line in lines if line.startswith("rank 64 "))
        assert row.split() == ["rank", "64", "0.071", "0.0639", "to", "0.0795", "3.39", "93", "%", "89", "%"]
        assert any(line.startswith("Rank 64 is about as far from the finetune as q4_0") for line in lines)

    @pytest.mark.usefixtures("drawing")
    def test_one_picture_more(self, tmp_path):
        made = {path.name: path for path in write_report(THREE, tmp_path)}
        assert made["kld-by-rank.png"].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    def test_making_the_page_needs_the_plain_numbers_only(self):
        plain = Outputs.from_json(outputs().to_json())
        assert page_html([replace(ONE, outputs=plain)]) == page_html([ONE])
        assert {c.kind for c in plain.candidates} == set(CandidateKind) - {CandidateKind.MODEL}
