"""Outputs on the page in a real Chromium: the selected rank and one choice drive all of it."""

from dataclasses import replace
from itertools import pairwise

import builders
import pytest
from outputs_builders import ANSWER, OTHER, candidate, hostile_outputs, outputs

from deltarank.results import CandidateKind

pytestmark = pytest.mark.browser


def one(**changes):
    return builders.results(builders.model(layers=2), outputs=outputs(**changes))


def steps(opened) -> list[int]:
    """How strongly each token is coloured."""
    return opened.page.evaluate("[...document.querySelectorAll('.tokens span')].map(e => Number(e.className.slice(1)))")


def test_the_rank_drives_figures_colours_and_answers(show):
    opened = show([one()])
    assert "As a rank-64 LoRA, Bigger-Body-12b keeps 89 % of its behaviour" in opened.text("header")
    assert opened.text("#outputs-at-rank").startswith(
        "At rank 64, the KL divergence from the finetune is 0.071 nats per token"
    )
    before = steps(opened)
    assert "".join(opened.page.locator(".tokens span").all_text_contents()).split() == ANSWER.split()
    opened.select_rank(8)
    assert opened.text("#outputs-at-rank").startswith(
        "At rank 8, the KL divergence from the finetune is 0.21 nats per token"
    )
    assert "0.21" in opened.text("#tokens dl")
    assert sum(steps(opened)) > sum(before)
    assert opened.page.locator("#figures-of-outputs tr.now th").all_inner_texts() == ["rank 8"] * 3
    assert opened.page.locator("#reading h3").all_inner_texts() == ["the finetune", "rank 8"]
    opened.select_rank(512)
    assert opened.text("#outputs-at-rank") == "Outputs were not measured at rank 512."
    assert opened.text("#tokens .instead") == "Rank 512 was not measured; rank 256 is shown."
    assert "rank-256 approximation" in opened.text("#parts .sentence")
    assert opened.complaints == []


def test_a_choice_holds_for_every_section(show):
    opened = show([one()])
    before = steps(opened)
    opened.page.locator("#coloured select.candidate").select_option("=base")
    assert {"=base"} == {s.input_value() for s in opened.page.locator("select.candidate").all()}
    assert sum(steps(opened)) > sum(before)
    assert "0.62" in opened.text("#tokens dl")
    opened.select_rank(8)
    assert "0.62" in opened.text("#tokens dl")  # what was chosen stays
    opened.page.locator("#tokens select.candidate").select_option("")
    opened.page.locator("#tokens select.text").select_option("wiki.test")
    assert "0.336" in opened.text("#tokens dl")
    assert {"wiki.test"} == {s.input_value() for s in opened.page.locator("select.text").all()}
    opened.page.locator("select.excerpt").select_option("1")
    assert "".join(opened.page.locator(".tokens span").all_text_contents()).split() == OTHER.split()
    assert opened.complaints == []


def test_a_token_shows_its_divergence(show):
    opened = show([one()], width=390)
    opened.page.locator(".tokens span").nth(4).click()
    assert opened.text("#coloured .readout").endswith(" nats")
    opened.page.locator(".tokens span").first.click()
    assert opened.text("#coloured .readout").endswith("not scored")


def test_answers_are_marked_where_they_differ(show):
    opened = show([one()])
    marks = [mark.inner_text() for mark in opened.page.locator(".answers > div:nth-child(2) mark").all()]
    assert marks[:2] == ["looked", "nets"]
    assert not any(mark != mark.strip() for mark in marks)
    texts = [place.text_content() for place in opened.page.locator(".answers .words").all()]
    assert texts == [ANSWER, OTHER]
    assert opened.text("#reading .similarity") == "The first 16 words are the same."
    opened.page.locator("#reading select.candidate").select_option("again")
    assert opened.page.locator("#reading h3").all_inner_texts() == ["the finetune", "finetune again"]
    assert "0.071" in opened.text("#tokens dl")  # there are no logits of it: the rest stays with the selected rank
    opened.page.locator("select.sample").select_option("1")
    assert opened.text(".prompt") == "What is 17 · 23? Show the steps."


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_runs_with_and_without_outputs_are_drawn_without_complaint(show, width, scheme):
    runs = [
        builders.results(builders.model(builders.low_rank, layers=2), name="a/Lora", outputs=outputs(unit="module")),
        builders.results(builders.model(layers=2), name="a/Full", outputs=outputs(scale=3)),
        builders.results(builders.model(layers=2), name="a/Silent"),
    ]
    opened = show(runs, width=width, scheme=scheme)
    opened.select_rank(256)
    opened.page.locator("#tokens select.candidate").select_option("=q8_0")
    opened.settle()
    assert opened.page.locator('[data-chart="kld"] svg').count() == 2
    assert opened.page.locator('[data-chart="bars"] svg').count() == 1
    assert opened.page.locator('[data-chart="parts"] svg').count() == 1
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.complaints == []
    assert [opened.own] == opened.requests


@pytest.mark.parametrize(
    "changes",
    [
        {"texts": ()},
        pytest.param({"candidates": ()}, marks=pytest.mark.slow),
        pytest.param({"samples": (), "excerpts": (), "attribution": (), "again": None}, marks=pytest.mark.slow),
    ],
    ids=["no texts", "nobody", "logits alone"],
)
def test_odd_outputs_are_drawn_without_complaint(show, changes):
    opened = show([one(**changes)], width=390)
    opened.select_rank(8)
    assert opened.complaints == []


def test_hostile_text_stays_inert(show):
    opened = show([replace(builders.hostile(), outputs=hostile_outputs())], width=390)
    opened.page.evaluate("() => { window.alert = () => { window.struck = true; }; }")
    opened.select_rank(64)
    for place, options in (("select.excerpt", 1), ("select.sample", 2)):
        for i in range(options):
            opened.page.locator(place).evaluate(
                "(e, i) => { e.value = i; e.dispatchEvent(new Event('change', {bubbles: true})); }", str(i)
            )
    opened.page.locator("#tokens select.candidate").select_option(index=4)
    opened.page.locator(".tokens span").nth(1).click()
    for cell in opened.page.locator("#parts path").all()[:4]:
        cell.hover(force=True)
    assert opened.page.evaluate("window.struck") is None
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 3
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.complaints == []


def test_on_a_phone_captions_are_whole_and_labels_of_an_axis_apart(show):
    """Captions are beside the tables that scroll; a log axis has room for few numbers."""
    opened = show([one()], width=390)
    edges = opened.page.evaluate("[...document.querySelectorAll('.caption')].map(e => e.getBoundingClientRect().right)")
    assert len(edges) >= 3
    assert max(edges) <= 390
    labels = opened.page.evaluate(
        """[...document.querySelectorAll('[data-chart=tokens] .role-axis-label')].map(axis =>
            [...axis.querySelectorAll('text')].filter(e => getComputedStyle(e).opacity !== '0' && e.textContent)
            .map(e => e.getBoundingClientRect()).map(box => [box.left, box.right, box.top]))"""
    )
    along_x = [axis for axis in labels if len({round(top) for _, _, top in axis}) == 1]
    assert along_x
    for axis in along_x:
        for (_, end, _), (start, _, _) in zip(sorted(axis), sorted(axis)[1:], strict=False):
            assert start - end >= 4


def test_on_a_phone_the_names_of_candidates_are_whole_and_apart(show):
    """Two adapters of one rank, and truncation alone beside q4_0."""
    made = outputs()
    adapters = [
        replace(candidate(f"adapter-{i}", kld), kind=CandidateKind.ADAPTER, rank=64)
        for i, kld in enumerate((0.06, 0.064))
    ]
    opened = show([one(candidates=(*made.candidates, *adapters))], width=390)
    texts = opened.page.evaluate(
        """[...document.querySelectorAll("[data-chart=kld] .role-mark.mark-text text")].filter(e => e.textContent)
            .map(e => [e.textContent, e.getBoundingClientRect()]).map(([text, box]) => [text, box.top, box.right])"""
    )
    names = {text for text, _, _ in texts}

    assert {"base", "adapter-0", "adapter-1", "truncation at rank 64", "someone's adapter"} <= names
    assert not any("\u2026" in name for name in names)
    assert max(right for _, _, right in texts) <= 390
    tops = sorted(top for _, top, _ in texts)
    assert min(below - above for above, below in pairwise(tops)) >= 12


def test_a_blind_bound_that_rules_nothing_out_is_not_shown(show):
    opened = show([one()])
    assert "best blind score" not in opened.text("#tokens dl")
    opened.page.locator("#tokens select.candidate").select_option("=q8_0")
    assert "best blind score" in opened.text("#tokens dl")
