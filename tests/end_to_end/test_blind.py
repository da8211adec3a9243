"""`deltarank blind` from a real run of `outputs` to the report."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import deltarank
from blind_voters import export, right, right_in, write_answers
from commands import RunCommand
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.divergence import abx_bound, blind_bound
from deltarank.errors import JobError, ResultsError, UsageError
from deltarank.results import BlindKey, PairKind, Question, Results, Role
from end_to_end.test_outputs import SIZES, TEXT, TOKENS, train
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


def test_the_bound_is_that_of_the_measured_divergence(copy: Path, tmp_path: Path) -> None:
    outputs = Results.load(copy).outputs
    assert outputs is not None
    made = deltarank.make_blind_test(copy, output=tmp_path / "test", pairs=4, preferences=2, candidate="rank 1")
    own = outputs.candidate("rank 1").logits[0]
    tokens = [round(pair.tokens or 0) for pair in made.key.pairs if pair.kind is PairKind.TEST and pair.x]
    bounds = [blind_bound(own.kld.mean, n) for n in tokens]

    assert made.best is not None
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
