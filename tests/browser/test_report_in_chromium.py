"""The page in a real headless Chromium: it asks for nothing, complains of nothing, and does what it says."""

import builders
import numpy as np
import pytest
from chromium import NBSP, Opened

from deltarank.results import figure, percent

pytestmark = pytest.mark.browser


def one(layers: int = 4, **changes):
    return builders.results(builders.model(layers=layers), **changes)


def three():
    return [
        builders.results(builders.model(builders.low_rank), name="a/Lora"),
        builders.results(builders.model(), name="a/Full"),
        builders.results(builders.model(builders.merge), name="a/Merged"),
    ]


def odd() -> dict[str, list]:
    """Results that have not what most have."""
    rows = builders.model(layers=2)
    zero = [
        builders.matrix(m.name, layer=m.layer, module=m.module, shape=m.shape, values=np.zeros(min(m.shape)))
        for m in rows
    ]
    lone = builders.matrix(
        "lm_head.weight", layer=None, module="lm_head", shape=(64, 32), values=np.arange(1, 33) ** -0.5
    )
    return {
        "nothing": [],
        "one layer": builders.model(layers=1),
        "no layers": [lone],
        "identical": zero,
        "all NaN": [builders.not_finite(m) for m in rows],
        "some NaN": [builders.not_finite(rows[0]), zero[1], *rows[2:], lone],
        "128 experts": [m for layer in range(2) for m in builders.experts(layer, 128)],
        "top-r solver": [_truncated(m) for m in rows],
    }


def _truncated(m):
    from dataclasses import replace

    return replace(m, singular_values=m.singular_values[:64], effective_rank=None, signal_rank=None, solver="krylov")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_no_request_leaves_the_page_and_nothing_is_complained_of(show, width, scheme):
    opened = show([one()], width=width, scheme=scheme)
    opened.select_rank(256)
    opened.page.locator(".heat svg").click(position={"x": 200, "y": 100})
    assert [opened.own] == opened.requests
    assert opened.complaints == []


@pytest.mark.parametrize("kind", list(odd()))
def test_odd_results_are_drawn_without_complaint(show, kind):
    opened = show([builders.results(odd()[kind])], width=390)
    opened.select_rank(8)
    assert opened.complaints == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [380, 1280])
def test_nothing_runs_off_the_side(show, width):
    for runs in ([one(40)], three(), [builders.hostile()]):
        opened = show(runs, width=width)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.complaints == []


def test_the_rank_selector_changes_the_colours_and_the_sentence(show):
    run = one()
    opened = show([run])
    before, at_64 = opened.fills(), opened.text("#headline")
    opened.select_rank(8)
    assert 28 == len(before) == len(opened.fills())
    assert all(a != b for a, b in zip(before, opened.fills(), strict=True))
    kept = percent(run.totals.whole.loss(8).energy_kept)
    assert at_64 != opened.text("#headline")
    said = f"As a rank-8 LoRA, Bigger-Body-12b keeps {kept} of the change in the measured matrices, "
    assert " ".join(opened.text("#headline").split()).startswith(said)
    assert " of the energy is lost at rank 8: " in " ".join(opened.text("#figures").split())
    assert {"8"} == {place.inner_text() for place in opened.page.locator(".at-rank").all()}
    opened.select_rank(64)
    assert before == opened.fills()


def test_a_rank_means_the_same_colour_on_every_map(show):
    """The scale runs from 0 to 1 at every rank: nothing lost at rank 512 is the lightest colour there is."""
    opened = show([builders.results(builders.model(builders.low_rank))])
    opened.select_rank(512)
    assert {"rgb(247, 239, 224)"} == set(opened.fills())


def test_a_click_on_a_cell_shows_that_matrix_with_its_figures(show):
    run = one()
    opened = show([run])
    cell = opened.page.locator(".heat .mark-rect.layer_0_marks path").nth(7 + 3)  # layer 1, o_proj
    cell.click()
    opened.settle()
    matrix = run.matrices[10]
    assert matrix.name == "model.layers.1.self_attn.o_proj.weight" == opened.text("#matrix-name")
    facts = " ".join(opened.text("#matrix").split())
    loss = matrix.loss(64)
    assert f"energy kept {percent(loss.energy_kept)}" in facts
    assert f"cosine distance {figure(loss.cosine_distance)}" in facts
    assert f"stable rank {figure(matrix.stable_rank)}" in facts
    assert f"effective rank {figure(matrix.effective_rank)}" in facts
    assert "noise edge" in opened.text("#matrix-charts")
    assert "rounding floor" in opened.text("#matrix-charts")
    assert "layer 1, self_attn.o_proj" in opened.text(".readout")


def test_keys_move_over_the_map_and_open_a_matrix(show):
    opened = show([one()])
    opened.page.locator(".heat").focus()
    assert "layer 3, mlp.down_proj" in opened.text(".readout")  # the worst is open at first
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp"):
        opened.page.keyboard.press(key)
    assert "layer 2, mlp.gate_proj" in opened.text(".readout")
    assert opened.text("#matrix-name") == "model.layers.3.mlp.down_proj.weight"
    opened.page.keyboard.press("Enter")
    assert opened.text("#matrix-name") == "model.layers.2.mlp.gate_proj.weight"
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowDown")  # there the map ends
    assert "layer 2, mlp.down_proj" in opened.text(".readout")


def test_the_rank_is_selected_by_keys(show):
    opened = show([one()])
    opened.page.locator("#rank-selector input:checked").focus()
    opened.page.keyboard.press("ArrowRight")
    opened.settle()
    assert opened.text("#headline").startswith("As a rank-128 LoRA")


def test_everything_can_be_reached_by_tab(show):
    opened = show([one(1)])
    seen = set()
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        seen.add(
            opened.page.evaluate(
                "(e => e.dataset.sort ?? e.dataset.chart ?? (e.id || e.name || e.tagName))(document.activeElement)"
            )
        )
    assert {"rank", "heat", "lost0", "cosine", "filter", "A", "SUMMARY"} <= seen


def names(opened: Opened) -> list[str]:
    return [cell.inner_text() for cell in opened.page.locator("#matrices td.name").all()]


def test_the_table_sorts_by_value(show):
    run = one(12)
    opened = show([run])
    worst = sorted(run.matrices, key=lambda m: -m.loss(64).relative_error)
    assert [m.name for m in worst[:60]] == names(opened)
    head = opened.page.locator("th[aria-sort]")
    assert head.get_attribute("aria-sort") == "descending"
    opened.page.locator("[data-sort=stable_rank]").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert max(run.matrices, key=lambda m: m.stable_rank).name == names(opened)[0]
    opened.page.locator("[data-sort=stable_rank]").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert min(run.matrices, key=lambda m: m.stable_rank).name == names(opened)[0]
    opened.page.locator("[data-sort=name]").click()
    in_order = names(opened)
    assert in_order.index("model.layers.2.mlp.up_proj.weight") < 60  # 2 comes before 10
    assert "model.layers.10.mlp.up_proj.weight" not in in_order


def test_the_table_filters_and_shows_the_rest(show):
    opened = show([one(12)])
    assert len(names(opened)) == 60
    opened.page.locator("#more").click()
    assert len(names(opened)) == 84
    opened.page.locator("#filter").fill("O_PROJ")
    assert len(names(opened)) == 12
    assert opened.text("#shown") == "12 of 84"


def test_a_name_in_the_table_opens_its_matrix(show):
    opened = show([one()])
    opened.page.locator("#matrices a", has_text="model.layers.0.self_attn.k_proj.weight").click()
    assert opened.text("#matrix-name") == "model.layers.0.self_attn.k_proj.weight"
    assert opened.page.locator("#matrix-name").is_visible()
    assert opened.page.evaluate("document.querySelector('#matrix').getBoundingClientRect().top") < 800


def test_experts_of_one_cell_can_be_chosen(show):
    opened = show([builders.results([m for layer in range(2) for m in builders.experts(layer, 128)])])
    options = opened.page.locator("#matrix-choice option")
    assert options.count() == 128
    opened.page.locator("#matrix-choice select").select_option(index=127)
    assert opened.text("#matrix-name") == options.nth(127).inner_text().split(":")[0]


def test_of_more_experts_than_lines_each_cell_says_how_many(show, monkeypatch):
    monkeypatch.setattr("deltarank.report.view.matrices.MOST_LISTED", 50)
    opened = show([builders.results(odd()["128 experts"])])

    assert opened.text("#matrix-choice span") == "128 in this cell; the 25 that lose the most"
    assert opened.text("#shown") == "50 of 50, those of each cell that lose the most; 206 more are in results.json"


def test_several_runs_stand_side_by_side(show):
    opened = show(three())
    assert opened.page.locator(".heat svg").count() == 3
    tops = {round(place.bounding_box()["y"]) for place in opened.page.locator(".heat").all()}
    assert len(tops) == 1
    opened.page.locator(".heat[data-run='1'] .mark-rect.layer_0_marks path").first.click()
    assert opened.text("#matrix-name") == "Full: model.layers.0.self_attn.q_proj.weight"
    header = [cell.inner_text() for cell in opened.page.locator("#matrices thead th").all()]
    assert header[1:4] == [f"{name}, lost at rank 64" for name in ("Lora", "Full", "Merged")]
    assert opened.page.locator("tr.now th").inner_text() == "64"
    assert opened.complaints == []


def test_layers_run_down_on_a_phone(show):
    opened = show([one(40)], width=390)
    box = opened.page.locator(".heat svg").bounding_box()
    assert box["height"] > box["width"]


def test_a_changed_colour_scheme_is_followed(show):
    opened = show([one()])
    ink = "getComputedStyle(document.querySelector('#loss svg .mark-text text')).fill"
    light = opened.page.evaluate(ink)
    opened.page.emulate_media(color_scheme="dark")
    opened.settle()
    assert light != opened.page.evaluate(ink)
    assert opened.complaints == []


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_names_stay_inert(show, width):
    run = builders.hostile()
    opened = show([run], width=width)
    opened.page.evaluate("() => { window.alert = () => { window.struck = true; }; }")
    opened.select_rank(8)
    opened.page.locator("#more").or_(opened.page.locator("#filter")).first.click()
    opened.page.locator("#matrices a").first.click()
    for cell in opened.page.locator(".heat path").all()[:5]:
        cell.hover(force=True)
    opened.settle()
    assert opened.page.evaluate("window.struck") is None
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 3
    assert [opened.own] == [url.split("#")[0] for url in opened.requests]
    assert opened.complaints == []


def test_script_that_gets_into_the_page_does_not_run(show):
    opened = show([one()])
    opened.page.evaluate(
        "() => { const bad = document.createElement('script'); bad.textContent = 'window.struck = 1'; "
        "document.body.append(bad); new Image().src = 'https://example.org/x.png'; }"
    )
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.struck") is None
    assert [opened.own] == opened.requests
    assert opened.complaints  # the policy says what it blocked


def test_without_script_the_answer_and_the_tables_stand(show):
    opened = show([one()], java_script_enabled=False)
    assert "keeps 52 % of the change in the measured matrices" in " ".join(opened.text("#headline").split())
    assert "need JavaScript" in opened.text("body")
    opened.page.locator("#loss summary").click()
    assert "mlp.down_proj" in opened.text("#loss")


def test_it_prints_light_on_paper(show):
    opened = show([one()])
    line = "getComputedStyle(document.querySelector('#matrix svg .mark-line path')).stroke"
    light = opened.page.evaluate(line)
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert opened.page.evaluate(line) == light
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.page.pdf().startswith(b"%PDF")


def test_the_page_rounds_as_python_does(show):
    opened = show([one(1)])
    shares = [0, 1, 1e-9, 0.0004, 0.00125, 0.0625, 0.09949, 0.0995, 0.125, 0.375, 0.625, 0.9849, 0.985, 0.9949, 0.9991]
    ours = [share / 997 for share in range(998)] + shares
    theirs = opened.page.evaluate("shares => shares.map(window.deltarank.percent)", ours)
    assert [percent(share) for share in ours] == [text.replace(NBSP, " ") for text in theirs]
    values = [0, 1e-7, 1.25e-4, 0.01234, 0.5, 1, 12.345, 999, 1000, 12345, 1234567]
    assert [figure(value) for value in values] == opened.page.evaluate("v => v.map(window.deltarank.figure)", values)
