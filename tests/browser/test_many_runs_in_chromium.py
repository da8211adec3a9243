"""More runs than fit side by side, in a real Chromium: the tables have a row for each, the rest is about one."""

import every_page
import pytest

pytestmark = pytest.mark.browser

RUNS = 8


@pytest.fixture
def opened(show):
    return show(every_page.some_runs(RUNS, layers=2))


def test_one_run_is_shown_and_another_can_be_chosen(opened):
    assert opened.page.locator(".heat:visible").count() == 1
    assert opened.page.locator(".verdict h2:visible").all_inner_texts() == ["Body-00-12b"]
    assert opened.page.locator("#matrices tbody tr").count() == 14
    opened.page.locator("#run").select_option("5")
    opened.settle()

    assert opened.page.locator(".heat:visible").count() == 1
    assert opened.page.locator(".verdict h2:visible").all_inner_texts() == ["Body-05-12b"]
    opened.page.locator(".heat:visible .mark-rect.layer_0_marks path").nth(1).click()
    assert opened.text("#matrix-name") == "model.layers.0.self_attn.k_proj.weight"
    assert opened.complaints == []


def test_a_table_over_runs_has_a_row_for_each_and_marks_the_rank(opened):
    assert opened.page.locator("#runs tbody tr").count() == RUNS
    assert opened.page.locator("#runs thead .now").all_inner_texts() == ["64"]
    assert opened.page.locator("#runs tbody td.now").count() == RUNS
    opened.select_rank(8)

    assert opened.page.locator("#runs thead .now").all_inner_texts() == ["8"]


def test_without_script_the_page_has_all_runs(show):
    opened = show(every_page.some_runs(RUNS, layers=1), java_script_enabled=False)

    assert opened.page.locator(".verdict h2:visible").count() == RUNS
