"""`deltarank blind` from a real run of `outputs` to the report."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

import deltarank
from blind_voters import dealt, export, right, right_in, write_answers
from commands import RunCommand
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.divergence import abx_bound, blind_bound, votes_needed
from deltarank.errors import JobError, ResultsError, UsageError
from deltarank.results import BlindKey, PairKind, Question, Results, Role
from pair_of_outputs import SIZES, TEXT, TOKENS, train
from refusals import refused
from tiny_architectures import architecture

LENGTH = 80


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a pair that was really trained, with three answers of each model to eight prompts."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    model = architecture("llama", **SIZES, **TOKENS, max_position_embeddings=256)()
    for name, text in (("base", TEXT.upper()), ("finetune", TEXT)):
        train(model, text, frozen=name == "finetune")
        model.save_pretrained(home / name)
        tokenizer(Recipe()).save_pretrained(home / name)
    (home / "prompts.txt").write_text("".join(f"{word}\n" for word in TEXT.split()[:8]))
    options = {"prompts": home / "prompts.txt", "samples": 3, "max_tokens": LENGTH, "ranks": [1, 48]}
    deltarank.outputs(home / "base", home / "finetune", output=home / "run", **options)  # type: ignore[arg-type]
    return home / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_from_a_run_to_its_report(copy: Path, command: RunCommand, tmp_path: Path) -> None:
    made = command("blind", "make", copy, "-o", tmp_path / "test", "--pairs", 6, "--preferences", 4)
    assert made.code == 0, made.err
    assert "wrote" in made.err
    key = BlindKey.load(tmp_path / "test")
    assert key.models == {Role.REFERENCE: "the finetune", Role.CANDIDATE: "rank 1", Role.BASE: "the base"}
    assert key.sampler == f"temperature 1, no top-p or top-k, at most {LENGTH} tokens"
    assert key.run == "../run"

    votes = [export(tmp_path / "test", right_in(0.6, seed), voter=seed, name=f"N{seed}") for seed in range(3)]
    scored = command("blind", "score", tmp_path / "test", *votes)
    assert scored.code == 0, scored.err
    assert f"wrote {copy / 'report.html'}" in scored.err
    [stored] = Results.load(copy).blind
    assert " ".join(stored.sentences[0].split()) in " ".join(scored.out.split())
    assert [voter.name for voter in stored.voters] == ["N0", "N1", "N2"]
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert '<section id="blind">' in page
    assert key.secret not in page

    again = command("blind", "score", tmp_path / "test" / "key.json", votes[0], "--json", "-q")
    assert json.loads(again.out)["voters"][0]["name"] == "N0"
    assert again.err == ""
    assert len(Results.load(copy).blind) == 1  # scored again, not twice
    assert command("blind", "make", copy, "-o", tmp_path / "test").code == 1


def test_the_texts_are_the_answers_of_their_models_and_independent(copy: Path, tmp_path: Path) -> None:
    """The finetune's texts beside the candidate's are those with another seed: nothing is shared but the prompt."""
    outputs = Results.load(copy).outputs
    assert outputs is not None
    made = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=4, preferences=2, candidate="base")

    assert made.key.models[Role.CANDIDATE] == "the base"
    assert Role.BASE not in made.key.models
    assert any("the candidate is the base" in note for note in made.notes)
    assert {len(sample.all_answers(name)) for sample in outputs.samples for name in ("finetune", "base")} == {3}


def test_no_two_pairs_have_texts_of_the_same_random_numbers(copy: Path, tmp_path: Path) -> None:
    """Answers of one number to one prompt, by the candidate, the base and the finetune's column "finetune", may begin
    alike. If one is shown, the others are not: who recognises the beginning would know something about another pair."""
    outputs = Results.load(copy).outputs
    assert outputs is not None
    samples = {bare(sample.prompt): sample for sample in outputs.samples}
    deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=16, preferences=8)
    shown = Counter[tuple[str, int]]()
    for pair in dealt(tmp_path / "test"):
        sample = samples[bare(pair["prompt"])]
        for text in filter(None, (*pair["texts"], pair["x"])):
            for name in ("rank 1", "base", "finetune"):
                answers = [bare(answer) for answer in sample.all_answers(name)]
                shown.update((sample.prompt, i) for i, each in enumerate(answers) if each.startswith(bare(text[:-2])))
    assert shown
    assert max(shown.values()) == 1


def bare(text: str) -> str:
    return "".join(c for c in text if c.isprintable() and not c.isspace())


def test_the_bound_is_that_of_the_measured_divergence(copy: Path, tmp_path: Path) -> None:
    outputs = Results.load(copy).outputs
    assert outputs is not None
    made = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=4, preferences=2, candidate="rank 1")
    own = outputs.candidate("rank 1").logits[0]
    tokens = [round(pair.tokens or 0) for pair in made.key.pairs if pair.kind is PairKind.TEST and pair.x]
    bounds = [blind_bound(made.key.kld or 0, n) for n in tokens]

    assert made.best is not None
    assert made.key.kld is not None
    assert own.kld.mean <= made.key.kld < 2 * own.kld.mean
    assert all(0 < n <= LENGTH for n in tokens)
    assert made.best.abx == pytest.approx(min(math.fsum(map(abx_bound, bounds)) / len(bounds), 0.9999))
    score = deltarank.score_blind_test(tmp_path / "test", [export(tmp_path / "test", right)])
    assert score.best == made.best


def test_a_test_that_cannot_show_anything_says_so(copy: Path, tmp_path: Path) -> None:
    """At full rank nothing is lost here, since only matrices were trained; a perfect score is luck or leakage."""
    made = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=6, preferences=4, candidate="any rank")
    text = " ".join(made.lines())
    score = deltarank.score_blind_test(tmp_path / "test", [export(tmp_path / "test", right)])

    assert made.lines()[0].startswith("This test cannot show anything: at ")
    assert 'of "who wrote X" pairs, and can favour one model in at most ' in text
    assert "no length is enough" in text or "Use longer replies" in text
    assert any("is luck or leakage" in sentence for sentence in score.sentences)


def test_a_moved_run_is_given_again(copy: Path, command: RunCommand, tmp_path: Path) -> None:
    test = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=3, preferences=0).folder
    elsewhere = copy.rename(tmp_path / "elsewhere")
    votes = export(test, right)
    lost = command("blind", "score", test, votes)
    assert lost.code == 0
    assert "the score is in no report (see --run)" in lost.err
    found = command("blind", "score", test, votes, "--run", elsewhere)
    assert found.code == 0
    assert Results.load(elsewhere).blind[0].test == BlindKey.load(test).test
    with refused("results-unreadable", ResultsError):
        deltarank.score_blind_test(test, [votes], run=copy)


def test_a_score_is_added_to_the_run_of_its_test_only(copy: Path, command: RunCommand, tmp_path: Path) -> None:
    a, b = (write_answers(tmp_path / f"{name}.jsonl", seed=i) for i, name in enumerate("ab"))
    of_files = deltarank.make_blind_test(a=a, b=b, output=tmp_path / "files", pairs=3, preferences=0).folder
    of_run = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=3, preferences=0).folder
    with refused("blind-other-run", JobError, match="from files of answers"):
        deltarank.score_blind_test(of_files, [export(of_files, right)], run=copy)
    replace_figures(copy, "kld", {"mean": 0.5})
    with refused("blind-other-run", JobError, match="has other figures of 'rank 1'"):
        deltarank.score_blind_test(of_run, [export(of_run, right)], run=copy)
    lost = command("blind", "score", of_run, export(of_run, right))
    assert (lost.code, "the score is in no report" in lost.err) == (0, True)
    assert Results.load(copy).blind == ()


def replace_figures(run: Path, field: str, figures: dict[str, object] | list[object]) -> None:
    """Of all candidates on the finetune's own answers."""
    content = json.loads((run / "results.json").read_text())
    [own] = [text["name"] for text in content["outputs"]["texts"] if text["own"]]
    for candidate in content["outputs"]["candidates"]:
        for logits in candidate["logits"]:
            if logits["text"] == own:
                logits[field] = {**logits[field], **figures} if isinstance(figures, dict) else figures
    (run / "results.json").write_text(json.dumps(content))


def test_the_bound_is_that_of_the_beginnings_if_they_differ_more(copy: Path, tmp_path: Path) -> None:
    """A text that is cut has the beginning of an answer only; a mean over whole answers would promise too little."""
    replace_figures(copy, "kld", {"mean": 0.02})
    parts = [(0, 16, 2, 9.0), (16, 32, 98, 0.2), (32, 64, 900, 0.002)]
    replace_figures(copy, "by_position", [dict(zip(("first", "last", "tokens", "kld"), p, strict=True)) for p in parts])
    made = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=4, preferences=2)

    assert made.key.kld == pytest.approx((2 * 9.0 + 98 * 0.2) / 100)  # two tokens alone are too few to tell


def test_answers_that_are_not_stored_whole_do_not_count_for_the_tokens_of_a_text(copy: Path, tmp_path: Path) -> None:
    """results.json has the first 2,000 characters of an answer, and the number of all its tokens."""
    content = json.loads((copy / "results.json").read_text())
    for sample in content["outputs"]["samples"]:
        sample["answers"]["finetune again"] = "word " * 400
    (copy / "results.json").write_text(json.dumps(content))
    made = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=4, preferences=2)

    assert all(pair.tokens and 0.7 < pair.tokens / pair.characters < 1.5 for pair in made.key.pairs)


def test_a_test_of_preferences_can_be_hopeless_too(copy: Path, tmp_path: Path) -> None:
    made = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=0, preferences=4, candidate="any rank")
    first = made.lines()[0]

    assert first.startswith("This test cannot show anything: at ")
    assert "nobody can favour one model in more than 50." in first or "in more than 50 %" in first


def test_too_few_pairs_for_a_perfect_judge_are_noticed(copy: Path, tmp_path: Path) -> None:
    replace_figures(copy, "kld", {"mean": 0.004})
    replace_figures(copy, "by_position", [])
    made = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=8, preferences=0)
    assert made.best is not None
    needed, pairs = votes_needed(made.best.abx or 0), made.key.count(Question.ABX)

    assert (
        f"Too few pairs: to detect even a perfect judge takes about {needed:,}, and there are {pairs}." in made.lines()
    )


def test_a_run_without_answers_is_refused(copy: Path, tmp_path: Path) -> None:
    with refused("blind-candidate", UsageError, match="has no candidate 'rank 3'"):
        deltarank.make_blind_test(copy, output=tmp_path / "test", candidate="rank 3")
    content = json.loads((copy / "results.json").read_text())
    content["outputs"]["samples"] = []
    (copy / "results.json").write_text(json.dumps(content))
    with refused("blind-no-texts", JobError, match="no answers to prompts"):
        deltarank.make_blind_test(copy, output=tmp_path / "test")
    content["outputs"] = None
    (copy / "results.json").write_text(json.dumps(content))
    with refused("blind-no-texts", JobError, match="has no outputs"):
        deltarank.make_blind_test(copy, output=tmp_path / "test")


def test_from_files_to_a_score(command: RunCommand, tmp_path: Path) -> None:
    a, b = (write_answers(tmp_path / f"{name}.jsonl", seed=i) for i, name in enumerate("ab"))
    made = command("blind", "make", "--a", a, "--b", b, "-o", tmp_path / "test", "--pairs", 8, "--json", "-q")
    plain = json.loads(made.out)
    assert plain["pairs"] == {"abx": {"test": 8, "same_model": 1, "sure": 0}, "preference": {"test": 12}}
    assert plain["votes_needed"] == {"abx": 325, "preference": 376}
    assert made.err == ""
    scored = command("blind", "score", tmp_path / "test", export(tmp_path / "test", right, name="Ada"))
    assert "Ada can tell b from a: 8 of 8 right." in scored.out
    assert "is unknown, because the divergence of the two models is" in " ".join(scored.out.split())
    assert BlindKey.load(tmp_path / "test").count(Question.ABX) == 8


def test_bad_usage_is_explained(command: RunCommand, tmp_path: Path) -> None:
    nothing = command("blind", "make", "-o", tmp_path / "test")
    assert (nothing.code, "from a run, or from two files" in nothing.err) == (2, True)
    assert command("blind", "score", tmp_path).code == 2
    assert command("blind").code in (0, 2)
