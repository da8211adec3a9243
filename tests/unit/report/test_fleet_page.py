"""The page and the terminal summary of a fleet."""

import json
from dataclasses import replace

import pytest
from page_reader import PageReader
from some_fleets import RANKS, made_up_fleet

from deltarank.errors import ResultsError
from deltarank.report import fleet_html, fleet_summary
from deltarank.results import Fleet

HOSTILE = '</script><b onmouseover="x">&\u202e'


def test_a_row_for_each_finetune_and_a_bar_for_each_rank() -> None:
    fleet = made_up_fleet(60)
    page = PageReader(fleet_html(fleet, {fleet.finetunes[1].name}))
    rows = [attributes for tag, attributes in page.elements if tag == "tr" and "data-row" in attributes]
    bars = [a for tag, a in page.elements if tag == "rect" and str(a.get("class")).startswith("step-")]
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]

    assert len(rows) == 60
    assert len(bars) == len(RANKS) * len(fleet.measured)
    assert links == [f"{fleet.finetunes[1].name}/report.html"]
    assert "is missing, which the index names" in page.words


def test_the_plan_comes_first_and_its_rank_is_marked() -> None:
    fleet = made_up_fleet(60)
    text = fleet_html(fleet)

    assert fleet.plan is not None
    assert PageReader(text).words.split("deltarank ", 1)[1].startswith(fleet.plan.sentences[0])
    assert f' class="now"><th scope="row">{fleet.plan.chosen}</th>' in text


def test_without_plan_and_kinship_the_page_says_what_is_kept() -> None:
    page = PageReader(fleet_html(made_up_fleet(20, with_plan=False, with_kinship=False)))

    assert "A LoRA of rank 64 keeps from" in page.words
    assert "nearest" not in page.words
    assert not any(tag == "canvas" for tag, _ in page.elements)


def test_equal_shares_are_said_once() -> None:
    fleet = made_up_fleet(3, with_plan=False, with_kinship=False)
    one = fleet.measured[0]
    page = PageReader(fleet_html(replace(fleet, finetunes=(one, replace(one, name="again", run="again")))))
    assert "in the measured matrices of each of 2 finetunes of" in page.words


def test_hostile_names_are_text() -> None:
    fleet = made_up_fleet(3, hostile=HOSTILE)
    failed = replace(fleet.finetunes[1], reason=HOSTILE)
    text = fleet_html(replace(fleet, finetunes=(fleet.finetunes[0], failed, fleet.finetunes[2]), notes=(HOSTILE,)))

    assert HOSTILE not in text
    assert not any(tag == "b" and attributes for tag, attributes in PageReader(text).elements)
    assert text.count("</script>") == 2
    assert "\u202e" not in text
    assert "\u202e" not in fleet_summary(fleet)


def test_the_page_asks_for_nothing() -> None:
    page = PageReader(fleet_html(made_up_fleet(3)))

    assert not [a for _, a in page.elements if any(a.get(name) for name in ("src", "style", "onclick"))]
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert str(policy).startswith("default-src 'none'")


def test_the_terminal_has_the_plan_a_line_each_and_what_is_related() -> None:
    fleet = made_up_fleet(30)
    text = fleet_summary(fleet, width=90)

    assert fleet.plan is not None
    assert text.replace("\n", " ").startswith(fleet.plan.sentences[0])
    assert f">   {fleet.plan.chosen:>4}"[:3] in text
    for each in fleet.finetunes:
        assert each.name in text
    assert "0.37 org-1--Model-001-12b-v2 + 0.35 org-2--Model-002-12b-v3" in " ".join(text.split())
    assert fleet_summary(fleet, colour=True).startswith("\x1b[1m")
    assert "more are in fleet.csv" in fleet_summary(made_up_fleet(70, with_plan=False, with_kinship=False))


def test_a_fleet_of_which_nothing_was_measured() -> None:
    fleet: Fleet = made_up_fleet(14, with_plan=False, with_kinship=False)
    failed = replace(fleet, finetunes=(fleet.finetunes[13],))

    assert "No finetune of Base-12b was measured." in PageReader(fleet_html(failed)).words


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        ("kinship", {"cosines": [[], [], []]}),
        ("kinship", {"names": ["a"], "cosines": [[]]}),
        ("kinship", {"sentences": []}),
        ("plan", {"sentences": []}),
        ("plan", {"chosen": 7}),
    ],
)
def test_a_fleet_whose_parts_do_not_belong_together_is_refused(part: str, broken: dict[str, object]) -> None:
    stored = json.loads(made_up_fleet(3).to_json())
    stored[part] |= broken

    with pytest.raises(ResultsError, match=rf"at `\$\.{part}`"):
        Fleet.from_json(json.dumps(stored))
