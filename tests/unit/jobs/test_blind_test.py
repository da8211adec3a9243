"""What a blind test consists of: which texts are paired, how they are cut, and what is left out."""

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import binom

import deltarank
from blind_voters import dealt, order_of, some_text, write_answers
from deltarank.errors import DeltarankError, JobError, OutputError, ResultsError, UsageError
from deltarank.results import BlindKey, PairKind, Question, Role
from refusals import refused


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {name: write_answers(tmp_path / f"{name}.jsonl", seed=i) for i, name in enumerate(("a", "b", "base"))}


def make(files: dict[str, Path], folder: Path, **options: object) -> deltarank.BlindTest:
    return deltarank.make_blind_test(output=folder, **files, **options)  # type: ignore[arg-type]


def answers_of(path: Path) -> list[str]:
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()]


def test_a_test_has_the_pairs_that_were_asked_for_and_catch_pairs(files, tmp_path):
    key = make(files, tmp_path / "test").key

    assert key.count(Question.ABX) == 24
    assert key.count(Question.PREFERENCE) == 12
    assert key.count(Question.ABX, PairKind.SAME_MODEL) == 3
    assert key.count(Question.ABX, PairKind.SURE) == 3
    assert len({pair.id for pair in key.pairs}) == len(key.pairs) == 42


def test_writers_fit_the_kind_of_pair(files, tmp_path):
    for pair in make(files, tmp_path / "test").key.pairs:
        expected = {
            PairKind.TEST: {Role.REFERENCE, Role.CANDIDATE},
            PairKind.SURE: {Role.REFERENCE, Role.BASE},
            PairKind.SAME_MODEL: {Role.REFERENCE},
        }[pair.kind]
        assert set(pair.writers) == expected
        assert (pair.x is None) == (pair.question is Question.PREFERENCE)


def test_every_text_is_by_its_writer_and_is_shown_once(files, tmp_path):
    make(files, tmp_path / "test")
    by_role = {Role(role): answers_of(files[name]) for role, name in zip(Role, ("a", "b", "base"), strict=True)}
    shown = []
    for pair in dealt(tmp_path / "test"):
        key = pair["key"]
        writers = [*key.writers, *([key.writers[key.x - 1]] if key.x else [])]
        texts = [*pair["texts"], *([pair["x"]] if pair["x"] else [])]
        for text, writer in zip(texts, writers, strict=True):
            [origin] = [each for each in by_role[writer] if each.startswith(text.removesuffix(" …"))]
            shown.append(origin)
    assert len(set(shown)) == len(shown) == 30 * 3 + 12 * 2


def test_the_texts_of_a_pair_are_cut_at_one_length(files, tmp_path):
    make(files, tmp_path / "test", characters=90)
    for pair in dealt(tmp_path / "test"):
        lengths = [len(text) for text in (*pair["texts"], *([pair["x"]] if pair["x"] else []))]
        assert max(lengths) <= 90 + len(" …")
        assert max(lengths) - min(lengths) < max(map(len, WORDS_OF_A_TEXT)) + 2
        assert all(text.endswith(" …") for text in pair["texts"])


WORDS_OF_A_TEXT = some_text(random.Random(0), 500).split()


def test_sides_and_x_are_fair_coins(files, tmp_path):
    """Over 20 tests: who wrote text 1, and of which text X's writer is."""
    pairs = [pair for i in range(20) for pair in make(files, tmp_path / str(i)).key.pairs if pair.kind is PairKind.TEST]
    first = sum(pair.writers[0] is Role.REFERENCE for pair in pairs)
    x = Counter(pair.x for pair in pairs if pair.x)

    assert binom.sf(max(first, len(pairs) - first) - 1, len(pairs), 0.5) > 1e-4
    assert binom.sf(max(x.values()) - 1, sum(x.values()), 0.5) > 1e-4


def test_each_person_has_an_order_of_their_own_and_balanced_sides(files, tmp_path):
    key = make(files, tmp_path / "test").key
    orders = [order_of(key, f"{voter:032x}") for voter in range(20)]

    assert len({tuple(pair.id for pair, _ in order) for order in orders}) == 20
    for order in orders:
        assert Counter(a for pair, a in order if pair.question is Question.ABX) == {1: 15, 2: 15}
        assert Counter(a for pair, a in order if pair.question is Question.PREFERENCE) == {1: 6, 2: 6}


def test_two_tests_of_the_same_files_share_nothing(files, tmp_path):
    one, two = (make(files, tmp_path / name).key for name in ("one", "two"))

    assert one.test != two.test
    assert one.secret != two.secret
    assert not {pair.id for pair in one.pairs} & {pair.id for pair in two.pairs}
    assert make(files, tmp_path / "three", seed=7).key.pairs == make(files, tmp_path / "four", seed=7).key.pairs


def test_the_hash_on_the_page_opens_with_the_key(files, tmp_path):
    test = make(files, tmp_path / "test")
    digest = hashlib.sha256((tmp_path / "test" / "key.json").read_bytes()).hexdigest()

    assert test.key_sha256 == digest
    assert digest in (tmp_path / "test" / "vote.html").read_text(encoding="utf-8")
    assert test.lines()[-1] == f"SHA-256 of the key: {digest}"


@pytest.mark.parametrize(
    "giveaway",
    [
        "As an AI language model, I cannot.",
        "I am ChatGPT.",
        "We at OpenAI",
        "llama is my name",
        "I was created by them",
        "I am Qwen2.5,",
        "GPT4o here:",
        "我是Qwen，",
        "我是通义千问，",
        "Je suis un modèle de langage.",
    ],
)
def test_answers_that_name_a_model_are_left_out(files, tmp_path, giveaway):
    lines = files["a"].read_text().splitlines()
    spoiled = [{**json.loads(line), "answer": f"{giveaway} {'word ' * 40}"} for line in lines[:8]]
    files["a"].write_text("\n".join([*map(json.dumps, spoiled), *lines[8:]]))
    test = make(files, tmp_path / "test")

    assert "Left out: 8 answers that may name a model." in test.notes
    assert not any(giveaway in text for pair in dealt(tmp_path / "test") for text in (*pair["texts"], pair["x"] or ""))


def test_the_names_of_the_files_give_an_answer_away_but_a_common_word_does_not(tmp_path):
    def made(name: str) -> deltarank.BlindTest:
        a = write_answers(tmp_path / f"{name}.jsonl", seed=1)
        lines = [json.loads(line) for line in a.read_text().splitlines()]
        lines[0]["answer"] += " This is bigger body_12B, or the harbour."
        a.write_text("\n".join(map(json.dumps, lines)))
        return make({"a": a, "b": write_answers(tmp_path / "b.jsonl", seed=2)}, tmp_path / f"of {name}")

    for name in ("Bigger-Body-12b", "Bigger-Body", "bigger_body-v2-instruct"):
        assert "Left out: 1 answer that may name a model." in made(name).notes
    assert not any("name a model" in note for note in made("harbour").notes)


HOSTILE = "</script><img src=x onerror=alert(1)>\u202egnirts\u0000\u200b\x1b[31m"


def test_hostile_texts_are_shown_as_plain_text_without_invisible_characters(files, tmp_path):
    for path in files.values():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [
            {**x, "answer": f"{HOSTILE}{x['answer'][::-1]} {'z' * 100_000}", "prompt": HOSTILE + x["prompt"]}
            for x in lines
        ]
        path.write_text("\n".join(map(json.dumps, lines)))
    make(files, tmp_path / "test", characters=60)
    page = (tmp_path / "test" / "vote.html").read_text(encoding="utf-8")

    assert page.count("</script>") == 2
    assert "<img" not in page
    for pair in dealt(tmp_path / "test"):
        for text in (pair["prompt"], *pair["texts"]):
            assert text.startswith("</script><img src=x onerror=alert(1)>gnirts[31m")
            assert all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f", "👨\u200d👩\u200d👧 ❤\ufe0f"),
        ("wa\u200bter\u200dmark\u200c \u200d", "watermark"),
        ("Z" + "\u0301" * 300 + "algo", "Z" + "\u0301" * 6 + "algo"),
    ],
)
def test_joiners_and_marks_are_kept_where_scripts_need_them(tmp_path, written, shown):
    files = {name: write_answers(tmp_path / f"{name}.jsonl", seed=i) for i, name in enumerate("ab")}
    for path in files.values():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [{**line, "answer": f"{written} {line['answer']}"} for line in lines]
        path.write_text("\n".join(map(json.dumps, lines)))
    make(files, tmp_path / "test")

    assert all(text.startswith(f"{shown} ") for pair in dealt(tmp_path / "test") for text in pair["texts"])


def test_a_request_that_is_too_long_is_cut_and_shown_so(tmp_path):
    files = {name: write_answers(tmp_path / f"{name}.jsonl", seed=i) for i, name in enumerate("ab")}
    for path in files.values():
        path.write_text(path.read_text().replace('"Prompt', '"' + "word " * 3000))
    make(files, tmp_path / "test")

    assert all(pair["prompt"].endswith(" …") and len(pair["prompt"]) < 8100 for pair in dealt(tmp_path / "test"))


def test_the_page_has_no_names_and_no_text_in_plain_sight(files, tmp_path):
    named = {name: path.rename(path.with_stem(f"Secret-Model-{name}")) for name, path in files.items()}
    make(named, tmp_path / "test")
    page = (tmp_path / "test" / "vote.html").read_text(encoding="utf-8")

    for path in named.values():
        assert path.stem not in page
        for answer in answers_of(path):
            assert answer[:20] not in page
    key = BlindKey.load(tmp_path / "test")
    assert not any(word in page for word in (key.secret, "candidate", "same_model", "writers"))


def test_a_pair_is_sealed_in_whole_blocks(files, tmp_path):
    """The sizes of the sealed pairs hardly tell how long their texts are."""
    make(files, tmp_path / "test")
    page = (tmp_path / "test" / "vote.html").read_text(encoding="utf-8")
    sizes = {len(sealed) for sealed in re.findall(r'"sealed":"([^"]*)"', page)}
    assert len(sizes) <= 3


# ---- what a test can show ---------------------------------------------------------------------------------------


def test_the_power_is_stated_before_the_vote(files, tmp_path):
    text = " ".join(make(files, tmp_path / "test").lines())

    assert "right 60 % of the time takes about 325 votes of one person" in text
    assert "a preference of 60 % about 376" in text
    assert "only if that person is right in about 81 % of pairs" in text
    assert "unknown, because the divergence of the two models is" in text


# ---- bad input --------------------------------------------------------------------------------------------------


def test_prompts_have_to_be_the_same(files, tmp_path):
    with files["b"].open("a") as file:
        file.write(json.dumps({"prompt": "Only\nhere", "answer": "x"}) + "\n")
    with refused("blind-prompts-differ", JobError, match="1 are in one of them only"):
        make(files, tmp_path / "test")


def test_one_answer_for_a_prompt_is_enough_for_preferences_only(tmp_path):
    files = {name: write_answers(tmp_path / f"{name}.jsonl", answers=1, seed=i) for i, name in enumerate("ab")}
    with refused("blind-few-answers", JobError, match="needs two different answers"):
        make(files, tmp_path / "test")
    test = make(files, tmp_path / "test", pairs=0)

    assert (test.key.count(Question.ABX), test.key.count(Question.PREFERENCE)) == (0, 12)


def test_equal_answers_are_no_pair(tmp_path):
    files = {name: write_answers(tmp_path / f"{name}.jsonl", seed=1) for name in "ab"}
    texts = answers_of(files["a"])
    for path in files.values():  # every model wrote the same to a prompt
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("\n".join(json.dumps({**line, "answer": texts[0]}) for line in lines))
    with refused("blind-few-answers", JobError):
        make(files, tmp_path / "test")


def test_an_answer_that_both_models_gave_is_in_no_pair(files, tmp_path):
    """It would come twice, once as each model's, and one pair would tell about the other."""
    lines = {name: [json.loads(line) for line in files[name].read_text().splitlines()] for name in "ab"}
    for one, other in zip(lines["a"][::2], lines["b"][::2], strict=True):
        other["answer"] = one["answer"][:90] + " and so on."
    files["b"].write_text("\n".join(map(json.dumps, lines["b"])))
    test = make(files, tmp_path / "test", characters=90)
    shown = {text[:60] for pair in dealt(tmp_path / "test") for text in (*pair["texts"], pair["x"] or "")}

    assert not shown & {line["answer"][:60] for line in lines["a"][::2]}
    assert "Left out: 96 answers that were given more than once." in test.notes


def test_two_models_in_one_file_are_refused(files, tmp_path):
    with refused("blind-few-answers", JobError, match="96|192 answers that were given more than once"):
        make({"a": files["a"], "b": files["a"]}, tmp_path / "test")


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    files = {}
    for i, (name, folder) in enumerate({"a": "Bigger-Body", "b": "host"}.items()):
        (tmp_path / folder).mkdir()
        files[name] = write_answers(tmp_path / folder / "answers.jsonl", seed=i)
    files["b"].write_text(files["b"].read_text().replace("light", "bigger body", 1))
    test = make(files, tmp_path / "test")

    assert list(test.key.models.values()) == ["Bigger-Body/answers", "host/answers"]
    assert "Left out: 1 answer that may name a model." in test.notes


def test_fewer_pairs_than_asked_for_are_noted(tmp_path):
    files = {
        name: write_answers(tmp_path / f"{name}.jsonl", prompts=5, answers=2, seed=i) for i, name in enumerate("ab")
    }
    test = make(files, tmp_path / "test", pairs=9, preferences=0)

    assert 'Of 9 pairs for "who wrote X", 5 could be made: there are not enough answers.' in test.notes
    assert "More pairs need more answers in the files." in test.notes
    assert 'times "who wrote X: A or B?": 5 pairs of the two models.' in " ".join(test.lines())
    assert "Too few pairs: to detect even somebody who is always right takes about 7, and there are 5." in test.lines()
    assert any("anybody should tell apart" in note for note in test.notes)
    assert any("one model twice" in note for note in test.notes)


@pytest.mark.parametrize(
    ("pairs", "preferences", "needed"), [(0, 4, "a preference of 60 %"), (4, 0, "somebody who is")]
)
def test_votes_are_stated_for_the_questions_that_are_asked(tmp_path, pairs, preferences, needed):
    files = {
        name: write_answers(tmp_path / f"{name}.jsonl", prompts=12, answers=2, seed=i) for i, name in enumerate("ab")
    }
    lines = make(files, tmp_path / "test", pairs=pairs, preferences=preferences).lines()

    [sentence] = [line for line in lines if line.startswith("To find ")]
    assert sentence.startswith(f"To find {needed}")
    assert "and to find" not in sentence


def test_other_sampling_settings_are_refused(tmp_path):
    a = write_answers(tmp_path / "a.jsonl", sampler="temperature 1")
    b = write_answers(tmp_path / "b.jsonl", seed=1, sampler="temperature 0.7")
    with refused("blind-samplers-differ", JobError, match="temperature 0.7"):
        make({"a": a, "b": b}, tmp_path / "test")


def test_the_sampler_is_printed(tmp_path):
    files = {
        name: write_answers(tmp_path / f"{name}.jsonl", seed=i, sampler="top-p <0.9>") for i, name in enumerate("ab")
    }
    make(files, tmp_path / "test")

    assert "sampled with the same settings: top-p &lt;0.9&gt;." in (tmp_path / "test/vote.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    "stated",
    [
        [{"top_p": 0.9, "seed": 1}, {"seed": 1, "top_p": 0.9}],
        ["top-p 0.9", "  top-p\n0.9 "],
    ],
)
def test_the_same_settings_may_be_written_in_two_ways(tmp_path, stated):
    files = {name: write_answers(tmp_path / f"{name}.jsonl", seed=i) for i, name in enumerate("ab")}
    for path, sampler in zip(files.values(), stated, strict=True):
        lines = [{**json.loads(line), "sampler": sampler} for line in path.read_text().splitlines()]
        path.write_text("\n".join(map(json.dumps, lines)))
    assert "0.9" in (make(files, tmp_path / "test").key.sampler or "")


@pytest.mark.parametrize("missing", [{}, {"sampler": None}, {"sampler": " "}])
def test_settings_that_one_answer_does_not_state_are_unknown(tmp_path, missing):
    a = write_answers(tmp_path / "a.jsonl", sampler="temperature 1")
    b = write_answers(tmp_path / "b.jsonl", seed=1, **missing)
    test = make({"a": a, "b": b}, tmp_path / "test")

    assert test.key.sampler is None
    assert "How the texts were sampled is not known to this page." in test.page.read_text(encoding="utf-8")


def test_settings_that_name_a_model_are_not_on_the_page(tmp_path):
    settings = "temperature 1, Bigger Body at host 3"
    files = {
        name: write_answers(tmp_path / f"{stem}.jsonl", seed=i, sampler=settings)
        for i, (name, stem) in enumerate({"a": "Bigger-Body-12b", "b": "served"}.items())
    }
    test = make(files, tmp_path / "test")

    assert "The sampling settings are not on the page, because they may name a model." in test.notes
    assert "Bigger" not in test.page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "slug"),
    [
        ('{"prompt": "a"}', "blind-answers-unreadable"),
        ('{"prompt": "\\u200b", "answer": "b"}', "blind-answers-unreadable"),
        ('{"prompt": "a", "answer": 3}', "blind-answers-unreadable"),
        ("", "blind-answers-unreadable"),
        ("[1]", "text-unreadable"),
        ("{", "text-unreadable"),
    ],
)
def test_a_line_that_is_no_answer_is_named(files, tmp_path, line, slug):
    files["b"].write_text(line)
    with refused(slug, JobError, match=r"b\.jsonl"):
        make(files, tmp_path / "test")


def test_a_run_without_texts_is_refused(tmp_path):
    with refused("results-unreadable", ResultsError):
        deltarank.make_blind_test(tmp_path, output=tmp_path / "test")


@pytest.mark.parametrize(
    "options",
    [{}, {"a": "a.jsonl"}, {"a": "a.jsonl", "b": "b.jsonl", "candidate": "rank 8"}, {"run": "run", "a": "a.jsonl"}],
)
def test_a_run_or_two_files(tmp_path, options):
    with refused("blind-source", UsageError):
        deltarank.make_blind_test(output=tmp_path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"pairs": -1},
        {"pairs": 10_000},
        {"characters": 3},
        {"people": 0},
        {"pairs": True},
        {"pairs": 0, "preferences": 0},
    ],
)
def test_numbers_are_checked(files, tmp_path, options):
    with refused("bad-number", UsageError):
        make(files, tmp_path / "test", **options)


def test_a_test_is_not_overwritten(files, tmp_path):
    first = make(files, tmp_path / "test")
    with refused("output-exists", OutputError):
        make(files, tmp_path / "test")
    assert BlindKey.load(tmp_path / "test") == first.key
    assert make(files, tmp_path / "test", force=True).key != first.key


def test_a_missing_file_is_named(files, tmp_path):
    with refused("text-not-found", DeltarankError, match="nowhere"):
        make({**files, "b": tmp_path / "nowhere.jsonl"}, tmp_path / "test")


def test_texts_of_unusual_scripts_are_cut_too(tmp_path):
    files = {}
    for name, letter in (("a", "漢"), ("b", "字")):
        lines = [
            {"prompt": f"p{i}", "answer": letter * 60 + chr(0x4E00 + 10 * i + j) * 30}
            for i in range(4)
            for j in range(4)
        ]
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("\n".join(map(json.dumps, lines)))
    make(files, tmp_path / "test", pairs=4, preferences=2)

    assert {len(text) for pair in dealt(tmp_path / "test") for text in pair["texts"]} == {89 + 2}
