"""The score of a blind test: against figures by hand, and against voters whose chance of being right is known."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import binom

import deltarank
from blind_voters import always_a, export, right, right_in, undecided, write_answers, write_votes, wrong
from deltarank.divergence import log_e_values
from deltarank.errors import JobError, ResultsError, UsageError
from deltarank.results import BlindScore
from refusals import refused


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("answers")
    return {name: write_answers(home / f"{name}.jsonl", seed=i) for i, name in enumerate(("a", "b", "base"))}


@pytest.fixture
def folder(files, tmp_path) -> Path:
    return deltarank.make_blind_test(output=tmp_path / "test", **files).folder


def changed(path: Path, change: Callable[[dict], object]) -> Path:
    """The file with a change, and the checksum that fits it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["checksum"]
    change(content)
    return write_votes(path, **content)


def one(folder: Path, answer, **options):
    [voter] = deltarank.score_blind_test(folder, [export(folder, answer, **options)]).voters
    return voter


def test_who_knows_everything_is_right_everywhere(folder):
    score = deltarank.score_blind_test(folder / "key.json", [export(folder, right, name="Ada")])
    [voter] = score.voters

    assert (voter.name, voter.asked, voter.votes, voter.guesses) == ("Ada", 42, 42, 0)
    assert (voter.told.right, voter.told.votes, voter.told.share.value) == (24, 24, 1.0)
    assert voter.told.luck == pytest.approx(0.5**24)
    assert voter.told.e_value == pytest.approx(2**24 / 25 * 2, rel=1e-6)  # B(25, 1) 2^24, times 2 for one side
    assert voter.told.p_value == pytest.approx(1 / voter.told.e_value)
    assert (voter.sure.right, voter.same_model.right) == (3, 3)
    assert (voter.preferred.reference, voter.preferred.candidate, voter.preferred.equal) == (12, 0, 0)
    assert score.sentences[0] == "Ada can tell b from a: 24 of 24 right."
    assert score.together is None


def test_who_is_always_wrong_cannot_tell(folder):
    voter = one(folder, wrong)

    assert (voter.told.right, voter.told.luck, voter.told.p_value) == (0, 1.0, 1.0)
    assert voter.preferred.candidate == 12


def test_once_is_one_time(folder):
    key = deltarank.BlindKey.load(folder)
    first = next(pair.id for pair in key.pairs if pair.x is None)
    answers = {first: undecided}
    path = export(folder, lambda pair, a: answers.get(pair.id, right)(pair, a))

    assert any(
        "11 times a, 0 times b, 1 time neither" in each for each in deltarank.score_blind_test(folder, [path]).sentences
    )


def test_guesses_and_ties_are_counted(folder):
    voter = one(folder, undecided)

    assert voter.guesses == 24
    assert (voter.preferred.equal, voter.preferred.share.value, voter.preferred.e_value) == (12, 0.5, 1.0)


def test_17_of_24_is_luck_in_1_of_31_tests(folder):
    key = deltarank.BlindKey.load(folder)
    wrong_ones = {pair.id for pair in [pair for pair in key.pairs if pair.x and pair.kind == "test"][:7]}
    path = export(folder, lambda pair, a: (wrong if pair.id in wrong_ones else right)(pair, a), name="Ada")
    score = deltarank.score_blind_test(folder, [path])

    assert score.sentences[0] == "17 of 24 right: this does not show that Ada can tell b from a."
    assert score.sentences[1].startswith("Luck does as well in 1 of 31 tests.")
    assert score.voters[0].told.luck == pytest.approx(binom.sf(16, 24, 0.5))


def test_the_e_value_is_that_of_the_votes_in_their_order(folder):
    key, votes = deltarank.BlindKey.load(folder), []
    path = export(folder, right_in(0.7, seed=3))
    for vote in json.loads(path.read_text())["votes"]:
        pair = key.pair[vote["pair"]]
        if pair.question == "abx" and pair.kind == "test":
            chosen = vote["a"] if vote["choice"] == "a" else 3 - vote["a"]
            votes.append(float(pair.x == chosen))
    [voter] = deltarank.score_blind_test(folder, [path]).voters
    log_e = log_e_values(votes)

    assert voter.told.right == sum(votes)
    assert voter.told.e_value == pytest.approx(math.exp(log_e[-1]))
    assert voter.told.p_value == pytest.approx(min(1.0, math.exp(-log_e.max())))
    assert voter.told.share.low < voter.told.share.value < voter.told.share.high


def test_partial_votes_count(folder):
    voter = one(folder, right, most=10)
    score = deltarank.score_blind_test(folder, [export(folder, right, most=10, name="Ada")])

    assert (voter.votes, voter.asked) == (10, 42)
    assert "Ada voted on 10 of 42 pairs" in score.notes
    assert score.voters[0].preferred is None


def test_no_vote_at_all_is_said(folder):
    score = deltarank.score_blind_test(folder, [export(folder, right, most=0)])

    assert score.sentences == ("There are no votes on pairs of the two models yet.",)


def test_people_together_and_in_the_order_in_which_they_began(folder):
    paths = [export(folder, right_in(0.75, seed), voter=seed, name=f"N{seed}") for seed in (3, 1, 2)]
    score = deltarank.score_blind_test(folder, paths)

    assert [voter.name for voter in score.voters] == ["N1", "N2", "N3"]
    assert score.together.told.votes == 72
    assert score.together.told.right == sum(voter.told.right for voter in score.voters)
    assert score == deltarank.score_blind_test(folder, paths[::-1]).__class__.from_json(score.to_json())


def test_ten_people_who_are_often_right_are_found_together(folder):
    paths = [export(folder, right_in(0.75, seed), voter=seed) for seed in range(10)]
    score = deltarank.score_blind_test(folder, paths)

    assert score.together.told.e_value > 20
    assert score.sentences[0].startswith("The 10 voters together can tell b from a")
    assert sum(voter.told.e_value > 20 for voter in score.voters) < 10


def test_people_who_all_follow_the_same_chance_likeness_are_no_evidence(files, tmp_path):
    """Ten people answer alike, by what the texts happen to look like: that is one person's evidence, and no more."""
    found = 0
    for test in range(30):
        folder = deltarank.make_blind_test(output=tmp_path / str(test), preferences=0, seed=test, **files).folder
        likeness = {
            pair.id: random.Random(f"{test} {pair.id}").choice((1, 2)) for pair in deltarank.BlindKey.load(folder).pairs
        }
        paths = [
            export(folder, lambda pair, a, likeness=likeness: ("a" if likeness[pair.id] == a else "b", 2), voter=person)
            for person in range(3)
        ]
        found += deltarank.score_blind_test(folder, paths).together.told.p_value <= 0.05
    assert binom.sf(found - 1, 30, 0.05) > 0.01


def test_the_best_of_many_is_no_surprise(folder):
    score = deltarank.score_blind_test(
        folder, [export(folder, right_in(0.5, i), voter=i, name=f"N{i}") for i in range(10)]
    )
    [sentence] = [each for each in score.sentences if each.startswith("The best of them")]
    best = min(score.voters, key=lambda voter: voter.told.luck)
    share = 1 - (1 - best.told.luck) ** 10

    assert f"is {best.name}: {best.told.right} of 24 right" in sentence
    assert (f"1 of {1 / share:.0f} tests" in sentence) or (f"{100 * share:.0f} % of tests" in sentence)


def test_catch_pairs_tell_of_careless_voters(folder):
    careless = deltarank.score_blind_test(
        folder, [export(folder, lambda p, a: wrong(p, a) if p.kind == "sure" else right(p, a))]
    )
    careful = deltarank.score_blind_test(folder, [export(folder, right)])

    assert any("was right on 0 of 3 pairs that anybody should tell apart" in note for note in careless.notes)
    assert not any("careless" in note for note in careful.notes)


def test_too_many_right_on_pairs_that_nobody_can_know_is_leakage(tmp_path):
    files = {name: write_answers(tmp_path / f"{name}.jsonl", answers=8, seed=i) for i, name in enumerate("ab")}
    folder = deltarank.make_blind_test(output=tmp_path / "test", pairs=48, **files).folder
    knowing = deltarank.score_blind_test(folder, [export(folder, right)])

    assert any("Somebody may have seen the key" in note for note in knowing.notes)


def test_a_thousand_votes(tmp_path):
    files = {
        name: write_answers(tmp_path / f"{name}.jsonl", prompts=320, answers=8, seed=i) for i, name in enumerate("ab")
    }
    folder = deltarank.make_blind_test(output=tmp_path / "test", pairs=1000, preferences=0, **files).folder
    everything = one(folder, right)

    assert everything.told.votes == 1000
    assert math.isfinite(everything.told.e_value)
    assert everything.told.share.low > 0.98


# ---- what does not belong together ------------------------------------------------------------------------------


@pytest.mark.parametrize("rewritten", [lambda raw: b"\xef\xbb\xbf" + raw, lambda raw: raw.replace(b"\n", b"\r\n")])
def test_votes_that_an_editor_of_windows_saved_are_read(folder, rewritten):
    path = export(folder, right, name="Zoë")
    path.write_bytes(rewritten(path.read_bytes()))

    assert deltarank.score_blind_test(folder, [path]).voters[0].told.right == 24


def test_an_edited_vote_is_refused_by_name(folder):
    path = export(folder, always_a)
    path.write_text(path.read_text().replace('"choice": "a"', '"choice": "b"', 1))
    with refused("blind-votes-changed", JobError, match=r"votes-1\.json was changed"):
        deltarank.score_blind_test(folder, [path])


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["votes"].reverse(),
        lambda content: content["votes"][3].update(a=3 - content["votes"][3]["a"]),
        lambda content: content["votes"][3].update(pair="ffffffff"),
        lambda content: content["votes"].append(content["votes"][0]),
        lambda content: content["votes"][0].update(choice="equal"),
        lambda content: content["votes"][0].update(confidence=None),
        lambda content: content["votes"][-1].update(confidence=2),
        lambda content: content.update(voter="0" * 31 + "9"),
    ],
)
def test_votes_that_the_page_cannot_give_are_refused(folder, change):
    path = changed(export(folder, always_a), change)
    with refused("blind-votes-changed", JobError, match="is not one that the page of this test can give"):
        deltarank.score_blind_test(folder, [path])


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format_version=0),
        lambda content: content.update(votes=3),
        lambda content: content["votes"][0].update(choice="c"),
        lambda content: content["votes"][0].update(a=3),
        lambda content: content.pop("voter"),
        lambda content: content.update(voter="Ada", votes=[]),
    ],
)
def test_what_is_no_file_of_votes_is_refused(folder, change):
    with refused("results-unreadable", ResultsError, match=r"votes-1\.json: not the votes of a blind test"):
        deltarank.score_blind_test(folder, [changed(export(folder, always_a), change)])


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", '{"votes": [}'])
def test_a_truncated_file_is_refused(folder, content):
    (folder / "votes.json").write_text(content)
    with refused("results-unreadable", ResultsError, match=r"votes\.json"):
        deltarank.score_blind_test(folder, [folder / "votes.json"])


def test_a_vote_file_is_cut_off(folder):
    path = export(folder, always_a)
    path.write_text(path.read_text()[:-40])
    with refused("results-unreadable", ResultsError):
        deltarank.score_blind_test(folder, [path])


def test_votes_of_another_test_are_refused(files, folder, tmp_path):
    other = deltarank.make_blind_test(output=tmp_path / "other", **files).folder
    with refused("blind-other-test", JobError, match=r"votes-1\.json has votes of another test"):
        deltarank.score_blind_test(folder, [export(other, always_a)])


def test_a_changed_key_is_refused(folder):
    path = export(folder, always_a)
    key = (folder / "key.json").read_text()
    for changed_key in (key.replace('"x": 1', '"x": 2', 1), key + "\n"):
        (folder / "key.json").write_text(changed_key)
        with refused("blind-key-changed", JobError, match="The key was changed after the page was made"):
            deltarank.score_blind_test(folder, [path])


def test_a_voter_counts_once(folder, tmp_path):
    path = export(folder, always_a, name="Ada")
    (tmp_path / "again.json").write_bytes(path.read_bytes())
    with refused("blind-voter-twice", JobError, match=r"again\.json are by the same voter \('Ada'\)"):
        deltarank.score_blind_test(folder, [path, tmp_path / "again.json"])


def test_no_votes_are_no_score(folder):
    with refused("blind-no-votes", UsageError):
        deltarank.score_blind_test(folder, [])


def test_hostile_names_are_shown_escaped(folder):
    names = ["\u202eevil\n", "<b>x</b>" * 50, "", "Ada", "Ada"]
    score = deltarank.score_blind_test(folder, [export(folder, right, voter=i, name=n) for i, n in enumerate(names)])

    assert all(voter.name.isprintable() and len(voter.name) <= 44 for voter in score.voters)
    assert [voter.name for voter in score.voters][2:] == ["voter 3", "Ada (1)", "Ada (2)"]
    assert BlindScore.from_json(score.to_json()) == score
