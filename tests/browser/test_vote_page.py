"""The page of a blind test in a real Chromium: voted by keyboard and by touch, saved, and scored as it was voted."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from chromium import Opened

import deltarank
from blind_voters import order_of, write_answers
from deltarank.results import BlindKey, PairKind, Question

pytestmark = pytest.mark.browser

PAIRS, PREFERENCES = 8, 3
SCREENS = PAIRS + 2 + PREFERENCES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {name: write_answers(tmp_path / f"{name}.jsonl", seed=i) for i, name in enumerate(("a", "b", "base"))}
    return deltarank.make_blind_test(output=tmp_path / "test", pairs=PAIRS, preferences=PREFERENCES, **files).folder


@pytest.fixture
def open_page(open_file, folder) -> Callable[..., Opened]:
    def opened(*, page: Path | None = None, **settings) -> Opened:
        made = open_file(page or folder / "vote.html", **settings)
        made.own = (page or folder / "vote.html").as_uri()
        return made

    return opened


def question(opened: Opened) -> str:
    return opened.text("#question")


def press(opened: Opened, key: str) -> None:
    """A vote, and the next screen."""
    before = opened.text("#count")
    opened.page.keyboard.press(key)
    opened.wait_until("before => document.querySelector('#count').textContent !== before", before)


def saved(opened: Opened, target: Path) -> Path:
    with opened.page.expect_download() as download:
        opened.page.locator("#save").click()
    download.value.save_as(target)
    return target


def by_hand(folder: Path, votes: Path) -> dict[str, int]:
    """Right answers, counted from the file and the key alone."""
    key, content = BlindKey.load(folder), json.loads(votes.read_text(encoding="utf-8"))
    counted = {"right": 0, "sure": 0, "same_model": 0, "reference": 0, "candidate": 0, "equal": 0}
    for vote in content["votes"]:
        pair = key.pair[vote["pair"]]
        number = vote["a"] if vote["choice"] == "a" else 3 - vote["a"]
        if pair.question is Question.PREFERENCE:
            counted["equal" if vote["choice"] == "equal" else pair.writers[number - 1].value] += 1
        elif number == pair.x:
            counted["right" if pair.kind is PairKind.TEST else pair.kind.value] += 1
    return counted


def assert_scored_as_voted(folder: Path, votes: Path) -> None:
    [voter] = deltarank.score_blind_test(folder, [votes]).voters
    found = {
        "right": voter.told.right,
        "sure": voter.sure.right,
        "same_model": voter.same_model.right,
        "reference": voter.preferred.reference,
        "candidate": voter.preferred.candidate,
        "equal": voter.preferred.equal,
    }
    assert found == by_hand(folder, votes)


def test_a_whole_test_by_keyboard_at_390_px_with_a_reload_and_undo(open_page, folder, tmp_path):
    opened = open_page(width=390)
    page = opened.page
    assert page.evaluate("document.activeElement.textContent") == "Can you tell two language models apart?"
    page.keyboard.press("Tab")
    page.keyboard.type("Ada Ωλ 🚢")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
    keys = [str(1 + i % 6) for i in range(PAIRS + 2)] + ["1", "2", "3"]
    for number, key in enumerate(keys, start=1):
        assert question(opened).startswith(f"Pair {number} of {SCREENS}.")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        press(opened, key)
        if number == 4:
            press(opened, "u")
            assert question(opened).startswith("Pair 4 of")
            press(opened, "6")
            page.reload()
            assert opened.text("#begin") == "Go on with pair 5"
            assert page.locator("#name").input_value() == "Ada Ωλ 🚢"
            page.locator("#begin").press("Enter")
    assert page.evaluate("document.activeElement.id") == "thanks"
    votes = json.loads(saved(opened, tmp_path / "votes.json").read_text(encoding="utf-8"))

    chosen = ["a", "a", "a", "b", "b", "b", "a", "a", "a", "b", "a", "equal", "b"]
    confidences = [3, 2, 1, 3, 2, 3, 3, 2, 1, 1, None, None, None]
    assert [vote["choice"] for vote in votes["votes"]] == chosen
    assert [vote["confidence"] for vote in votes["votes"]] == confidences
    assert votes["name"] == "Ada Ωλ 🚢"
    order = [(pair.id, a) for pair, a in order_of(BlindKey.load(folder), votes["voter"])]
    assert [(vote["pair"], vote["a"]) for vote in votes["votes"]] == order
    assert_scored_as_voted(folder, tmp_path / "votes.json")
    assert opened.complaints == []
    assert {url.split("?")[0] for url in opened.requests if not url.startswith("blob:")} == {opened.own}


def test_by_touch_with_the_text_to_copy(open_page, folder, tmp_path):
    opened = open_page(width=390, has_touch=True, is_mobile=True)
    page = opened.page
    page.locator("#begin").tap()
    for number in range(SCREENS):
        choices = page.locator("#answers .choices:not([hidden]) button")
        assert all(button.bounding_box()["height"] >= 44 for button in choices.all())
        page.locator("#question").tap()  # a second tap at the same place is a double tap's, and does not count
        choices.nth(number % choices.count()).tap()
        opened.wait_until("number => !document.querySelector('#count').textContent.startsWith(`${number} of`)", number)
    page.locator("#copy").tap()
    text = page.locator("#text").input_value()
    (tmp_path / "pasted.json").write_text(text, encoding="utf-8")

    assert page.locator("#text").is_visible()
    assert_scored_as_voted(folder, tmp_path / "pasted.json")
    assert opened.complaints == []


def test_only_the_texts_of_one_pair_are_in_the_document(open_page, folder):
    """Not those of a later pair, nor of an earlier one; and no name, in the document or in the source."""
    opened = open_page()
    opened.page.locator("#begin").press("Enter")
    seen: list[str] = []
    for _ in range(SCREENS):
        document = opened.page.evaluate("document.documentElement.outerHTML")
        texts = [text for id in ("a", "b", "x") if (text := opened.page.locator(f"#text-{id}").text_content())]
        assert all(text[:30] in document for text in texts)
        assert not any(text[:30] in document for text in seen)
        assert 'id="data"' not in document
        assert '"sealed":' not in document
        seen += texts
        press(opened, "1")
    document = opened.page.evaluate("document.documentElement.outerHTML")
    source = (folder / "vote.html").read_text(encoding="utf-8")
    assert len(set(seen)) == len(seen) == 3 * (PAIRS + 2) + 2 * PREFERENCES
    assert not any(text[:30] in each for text in seen for each in (document, source))


def test_nothing_in_the_page_tells_catch_pairs_or_writers(open_page, folder):
    """What the page knows of each pair is the same for all kinds: a question, a request and texts."""
    key = BlindKey.load(folder)
    opened = open_page()
    opened.page.locator("#begin").press("Enter")
    shapes = set()
    for _ in range(PAIRS + 2):
        shapes.add(re.sub(r">[^<]*<", "><", opened.page.locator("#pair").evaluate("e => e.outerHTML")))
        press(opened, "1")
    undo = ' disabled=""'
    assert len({shape.replace(undo, "") for shape in shapes}) == 1
    stored = opened.page.evaluate("JSON.stringify(localStorage)")
    assert key.secret not in stored
    for name in ("candidate", "same_model", "writers"):
        assert name not in (folder / "vote.html").read_text(encoding="utf-8") + stored


def test_without_storage_it_says_so_and_works(open_page, folder, tmp_path):
    opened = open_page(first="Object.defineProperty(window, 'localStorage', { get() { throw new Error('none'); } });")
    assert "This browser does not keep your answers" in opened.text("#keeps")
    opened.page.locator("#begin").press("Enter")
    assert opened.page.locator("#unsaved").is_visible()
    for _ in range(SCREENS):
        press(opened, "2")
    saved(opened, tmp_path / "votes.json")

    assert_scored_as_voted(folder, tmp_path / "votes.json")
    assert opened.complaints == []


def test_stopping_half_way_saves_what_there_is(open_page, folder, tmp_path):
    opened = open_page()
    opened.page.locator("#begin").press("Enter")
    for _ in range(3):
        press(opened, "4")
    opened.page.locator("#pause").click()
    assert opened.text("#thanks") == f"Thank you! You have answered 3 of {SCREENS}."
    [voter] = deltarank.score_blind_test(folder, [saved(opened, tmp_path / "votes.json")]).voters
    assert (voter.votes, voter.asked) == (3, SCREENS)
    opened.page.locator("#resume").click()
    assert question(opened).startswith("Pair 4 of")


def test_another_person_gets_another_order_and_is_another_voter(open_page, folder, tmp_path):
    opened = open_page()
    opened.page.locator("#begin").press("Enter")
    for _ in range(SCREENS):
        press(opened, "1")
    first = saved(opened, tmp_path / "first.json")
    opened.page.locator("#end .restart").click()
    assert opened.page.evaluate("document.activeElement.id") == "no"
    opened.page.locator("#yes").click()
    opened.page.locator("#begin").press("Enter")
    for _ in range(SCREENS):
        press(opened, "1")
    score = deltarank.score_blind_test(folder, [first, saved(opened, tmp_path / "second.json")])

    assert len({voter.voter for voter in score.voters}) == 2
    assert score.together is not None


def test_a_held_key_and_a_double_click_vote_once(open_page):
    opened = open_page()
    opened.page.locator("#begin").press("Enter")
    opened.page.locator("#question").dispatch_event("keydown", {"key": "1", "repeat": True})
    assert opened.text("#count") == f"0 of {SCREENS} answered"
    opened.page.locator("#answers button:visible").first.dblclick()
    assert opened.text("#count") == f"1 of {SCREENS} answered"


def test_two_tabs_of_one_browser_go_on_together(open_page, folder, tmp_path):
    """Neither overwrites what was answered in the other."""
    opened = open_page()
    other = Opened(opened.page.context.new_page())
    other.page.goto(opened.own)
    opened.page.locator("#begin").press("Enter")
    press(opened, "1")
    other.wait_until("document.querySelector('#begin').textContent === 'Go on with pair 2'")
    other.page.locator("#begin").press("Enter")
    press(other, "6")
    opened.wait_until("document.querySelector('#question').textContent.startsWith('Pair 3 of')")
    opened.page.locator("#pause").click()
    votes = json.loads(saved(opened, tmp_path / "votes.json").read_text(encoding="utf-8"))["votes"]

    assert [vote["choice"] for vote in votes] == ["a", "b"]
    opened.page.evaluate("localStorage.clear()")
    assert question(other).startswith("Pair 3 of")


def test_damaged_storage_is_not_taken(open_page):
    opened = open_page()
    opened.page.locator("#begin").press("Enter")
    press(opened, "1")
    whole = opened.page.evaluate("JSON.parse(Object.values(localStorage)[0])")
    damaged = [[None], [{**whole["votes"][0], "choice": "c"}], [{**whole["votes"][0], "confidence": None}]]
    changed = [{**whole, "name": {}}, {**whole, "started": None}, *({**whole, "votes": votes} for votes in damaged)]
    for kept in ('{"voter": "x", "votes": 3}', "{", "null", '"a"', *map(json.dumps, changed)):
        opened.page.evaluate("text => localStorage.setItem(Object.keys(localStorage)[0], text)", kept)
        opened.page.reload()
        assert opened.text("#begin") == "Begin"
        opened.page.locator("#begin").press("Enter")
        assert question(opened).startswith("Pair 1 of")
    assert opened.complaints == []


HOSTILE = '<img src=x onerror="window.struck=1"><script>window.struck=1</script>\u202e**bold**\n\n# A heading\n'


def test_hostile_texts_stay_text(open_page, tmp_path):
    files = {}
    for i, name in enumerate("ab"):
        files[name] = write_answers(tmp_path / f"hostile {name}.jsonl", seed=i)
        lines = [json.loads(line) for line in files[name].read_text().splitlines()]
        lines = [{"prompt": HOSTILE + x["prompt"], "answer": HOSTILE + x["answer"] + "w" * 100_000} for x in lines]
        files[name].write_text("\n".join(map(json.dumps, lines)))
    made = deltarank.make_blind_test(output=tmp_path / "hostile", pairs=4, preferences=2, **files)
    opened = open_page(width=390, page=made.page)
    opened.page.locator("#begin").press("Enter")
    for _ in range(len(made.key.pairs)):
        assert opened.page.locator("#text-a").text_content().startswith("<img src=x onerror=")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
        press(opened, "1")
    assert opened.page.evaluate("window.struck") is None
    assert opened.page.locator("img").count() == 0
    assert opened.complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_every_control_has_a_name_and_can_be_reached(open_page, width, scheme):
    opened = open_page(width=width, scheme=scheme, reduced_motion="reduce")
    opened.page.locator("#begin").press("Enter")
    names = []
    for _ in range(9):
        opened.page.keyboard.press("Tab")
        names.append(opened.page.evaluate("document.activeElement.innerText").split("\n")[0])
    for name in ("A, surely", "I guess A", "I guess B", "B, surely", "Stop here and save"):
        assert any(each.startswith(name) for each in names), names
    assert opened.page.get_by_role("group", name="Who wrote X?").is_visible()
    outside = "[...document.body.children].filter(e => !e.matches('header, main, footer, script, noscript')).length"
    assert opened.page.evaluate(outside) == 0  # everything is in a landmark
    assert opened.page.get_by_role("progressbar", name="0 of 13 answered").is_visible()
    assert opened.page.get_by_role("heading", name="Pair 1 of 13. Who wrote X: A or B?").is_visible()


def test_without_script_it_says_what_it_needs(open_page):
    opened = open_page(java_script_enabled=False)
    assert "This test needs JavaScript" in opened.text("body")
