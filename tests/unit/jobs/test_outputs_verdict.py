"""The verdict: what it compares with, what it leaves out, and that it claims no more than was measured."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deltarank.divergence import TokenStats, summarise_logits
from deltarank.jobs.outputs.verdict import verdict_sentences
from deltarank.results import (
    AttributionResult,
    CandidateKind,
    CandidateResult,
    Outputs,
    Part,
    Text,
    TwoSampleTest,
    Writing,
)

YARDSTICKS = {"q8_0": 0.002, "q4_0": 0.08}
KINDS = {"base": CandidateKind.BASE, "finetune again": CandidateKind.CONTROL, "whole delta": CandidateKind.CONTROL}


def documents(kld: float) -> dict[str, TokenStats]:
    """Five documents whose mean is `kld` to rounding; by how much they differ is the same for all."""
    made = {}
    for number, share in enumerate((0.8, 0.9, 1.0, 1.1, 1.2)):
        each = np.full(40, kld * share, np.float32)
        zeros = np.zeros(40, np.float32)
        rest = (np.ones(40, np.bool_), zeros, np.arange(40, dtype=np.int32))
        made[f"document {number}"] = TokenStats(each, each, zeros, zeros, zeros, *rest)
    return made


def candidate(name: str, kld: float, *, base: float, own: bool = True, **changes: Any) -> CandidateResult:
    kind, rank = KINDS.get(name, CandidateKind.YARDSTICK if name in YARDSTICKS else CandidateKind.MODEL), None
    if found := re.fullmatch(r"rank (\d+)", name):
        kind, rank = CandidateKind.RANK, int(found[1])
    if name == "any rank":
        kind = CandidateKind.RANK
    if found := re.fullmatch(r"truncation alone at rank (\d+)", name):
        kind, rank = CandidateKind.TRUNCATION, int(found[1])
    logits = summarise_logits(
        "own answers" if own else "wiki", documents(kld), base=documents(base), sampled_from_reference=own
    )
    return CandidateResult(name, changes.pop("kind", kind), rank, (logits,), **changes)


def outputs(klds: dict[str, float], *, own: bool = True, **changes: Any) -> Outputs:
    made = tuple(candidate(name, kld, base=klds.get("base", 1.0), own=own) for name, kld in klds.items())
    text = Text("own answers" if own else "wiki", 5, 200, own)
    settings = {"reference": "some/finetune", "texts": (text,), "candidates": made, **changes}
    return Outputs(**settings)


def said(klds: dict[str, float], **settings: Any) -> str:
    return "\n".join(verdict_sentences(outputs(klds, **settings)))


@pytest.mark.parametrize(
    ("kld", "words"),
    [
        (0.0005, "Rank 64 is closer to the finetune than q8_0"),
        (0.0021, "Rank 64 is as close to the finetune as q8_0"),
        (0.02, "Rank 64 is farther from the finetune than q8_0 and closer than q4_0"),
        (0.09, "Rank 64 is as close to the finetune as q4_0"),
        (0.16, "Rank 64 is farther from the finetune than q4_0 (twice the divergence)"),
        (0.4, "Rank 64 is farther from the finetune than q4_0 (5 times the divergence)"),
    ],
)
def test_the_headline_compares_with_yardsticks_that_were_measured(kld: float, words: str) -> None:
    headline = verdict_sentences(outputs({"base": 1.0, "rank 64": kld, **YARDSTICKS}))[0]

    assert headline.startswith(f"{words}, and keeps ")


def test_an_interval_without_figures_is_left_out() -> None:
    words = said({"base": 1.0, "rank 64": 1e-7, **YARDSTICKS})

    assert "keeps over 99.9 % of the finetune's behaviour." in words
    assert "over 99.9 to" not in words


def test_of_two_yardsticks_within_a_quarter_the_nearer_is_named() -> None:
    klds = {"base": 1.0, "rank 64": 0.05, "q4_0": 0.06, "q8_0": 0.047}

    assert verdict_sentences(outputs(klds))[0].startswith("Rank 64 is as close to the finetune as q8_0")


def test_without_yardsticks_the_headline_is_the_share_that_is_kept_with_its_interval() -> None:
    headline, distances, *_ = verdict_sentences(outputs({"base": 0.5, "rank 64": 0.1}))

    assert headline == (
        "Rank 64 keeps 80 % of the finetune's behaviour (95 % interval 80 to 80 %) on the finetune's own answers."
    )
    assert re.fullmatch(
        r"The KL divergence of rank 64 from the finetune is 0.1 nats per token \(95 % interval 0\.\d+ to 0\.\d+\) on "
        r"the finetune's own answers \(200 tokens in 5 documents\), compared with base 0.5\.",
        distances,
    )


def test_without_a_figure_to_compare_with_the_headline_is_the_divergence() -> None:
    """The share that is kept is unknown where the base was not scored; a yardstick at zero has no ratio."""
    rank, yardstick = (candidate(name, kld, base=0.5) for name, kld in (("rank 64", 0.1), ("q8_0", 0.0)))
    made = (replace(rank, logits=(replace(rank.logits[0], kept=None),)), yardstick)
    headline, *_ = verdict_sentences(Outputs("some/finetune", (Text("own answers", 5, 200, own=True),), made))

    assert headline == "Rank 64 diverges from the finetune by 0.1 nats per token on the finetune's own answers."


def test_a_candidate_farther_than_the_base_is_reported() -> None:
    assert "Rank 8 is farther from the finetune than the base" in said({"base": 0.5, "rank 8": 0.6})


def test_a_difference_below_the_control_is_no_difference() -> None:
    words = said({"base": 0.5, "rank 64": 1e-7, "whole delta": 2e-6, "finetune again": 0.0})

    assert words.startswith("Rank 64 is indistinguishable from the finetune on the finetune's own answers")
    assert said({"base": 0.5, "rank 64": 0.0, **YARDSTICKS}).startswith(
        "Rank 64 is indistinguishable from the finetune"
    )
    assert "judge" not in words
    assert (
        "the controls diverge from the finetune by 2.0e-6 (whole delta) and 0 (finetune again) nats per token." in words
    )


def test_the_judge_and_the_bound_are_stated_for_the_finetune_s_own_text_only() -> None:
    klds = {"base": 0.5, "rank 64": 0.001355, "q4_0": 0.03}
    own, other = said(klds), said(klds, own=False)

    assert "after about 2,210 tokens sampled at temperature 1 (q4_0 after 100)" in own
    assert "nobody can be right about more than 59 % of replies of 50 tokens and 68 % of replies of 200 tokens" in own
    assert "placebo" in own
    assert "on wiki" in other
    assert "judge" not in other
    assert "placebo" not in other


def test_a_bound_that_rules_nothing_out_is_not_stated() -> None:
    words = said({"base": 2.0, "rank 64": 0.2})

    assert "An ideal judge" in words
    assert "blind" not in words
    assert "one reply" not in words


def test_truncation_alone_is_told_from_what_no_lora_carries() -> None:
    klds = {"base": 0.9, "rank 8": 0.05, "any rank": 0.03, "truncation alone at rank 8": 0.02}
    settings = {"headline_rank": 8}

    assert (
        "Truncation to rank 8 alone costs 0.02 nats per token (95 % interval 0.0164 to 0.0236): all other tensors are "
        "the finetune's own. Leaving the other tensors the base's, as a served LoRA does, costs 0.03 alone. As served, "
        "both together cost 0.05."
    ) in said(klds, settings=settings)
    assert "Truncation" not in said({**klds, "any rank": 0.0}, settings=settings)
    assert "Truncation" not in said({**klds, "rank 16": 0.04}, settings={"headline_rank": 16})


def test_the_lowest_rank_at_least_as_near_as_a_yardstick_is_named_with_how_much_nearer_it_is() -> None:
    lead = "The lowest measured rank that is at least as close to the finetune as"
    klds = {"base": 1.0, "rank 16": 0.3, "rank 64": 0.0001, "rank 128": 0.00005, **YARDSTICKS}

    assert f"{lead} q4_0 is rank 64 (800 times closer); as q8_0, rank 64 (20 times closer)." in said(klds)
    assert f"{lead} q4_0 is rank 64 (about as close).\nNo measured rank is as close to the finetune as q8_0." in said(
        {**klds, "rank 64": 0.09, "rank 128": 0.05}
    )
    assert "No measured rank is as close to the finetune as q4_0 or q8_0." in said(
        {**klds, "rank 64": 0.9, "rank 128": 0.5}
    )


def test_the_headline_is_about_the_run_s_rank_or_the_one_nearest_64_or_what_there_is() -> None:
    ranks = {"base": 1.0, "rank 8": 0.3, "rank 48": 0.2, "rank 320": 0.1}

    assert verdict_sentences(outputs(ranks))[0].startswith("Rank 48 ")
    assert verdict_sentences(outputs(ranks, settings={"headline_rank": 8}))[0].startswith("Rank 8 ")
    assert verdict_sentences(outputs({"base": 1.0, "org/other": 0.2}))[0].startswith("The model org/other keeps 80 %")
    assert verdict_sentences(outputs({"base": 1.0}))[0] == (
        "The base diverges from the finetune by 1 nats per token on the finetune's own answers."
    )
    assert "The model org/other diverges from the finetune by 0.2 nats per token and keeps 80 %" in said(
        {**ranks, "org/other": 0.2}
    )


def test_another_text_is_reported_beside_the_finetune_s_own() -> None:
    own, wiki = (candidate("rank 64", kld, base=0.5, own=own) for kld, own in ((0.1, True), (0.2, False)))
    both = CandidateResult("rank 64", CandidateKind.RANK, 64, (*wiki.logits, *own.logits))
    texts = (Text("wiki", 5, 200), Text("own answers", 5, 200, own=True))
    words = verdict_sentences(Outputs("some/finetune", texts, (both,)))

    assert words[0].endswith("on the finetune's own answers.")
    assert any(
        each.startswith("On wiki, rank 64 diverges from the finetune by 0.2 nats per token and keeps 60 %")
        for each in words
    )


def writing(accuracy: float, p: float, cosine: float = 0.21) -> Writing:
    return Writing(24, 4, cosine, 0.3, 80.0, TwoSampleTest(accuracy, p, 999))


@pytest.mark.parametrize(("p", "stated"), [(0.01, True), (0.2, False), (None, False)])
def test_text_similarity_is_stated_only_if_it_tells_the_base_from_a_second_run(p: float | None, stated: bool) -> None:
    base = candidate("base", 0.5, base=0.5, writing=writing(0.8, 0.001, 0.11))
    rank = candidate("rank 64", 0.1, base=0.5, writing=writing(0.61, 0.01, 0.19))
    texts = (Text("own answers", 5, 200, own=True),)
    made = Outputs("some/finetune", texts, (base, rank), again=writing(0.49, 0.6), similarity_p=p)
    words = "\n".join(verdict_sentences(made))

    assert ("TF-IDF" in words) is stated
    assert ("A second run of the finetune scores 0.21, the base 0.11." in words) is stated


def test_texts_are_compared_with_a_second_run_of_the_finetune() -> None:

    def words(p: float) -> str:
        rank = candidate("rank 64", 0.1, base=0.5, writing=writing(0.61, p))
        texts = (Text("own answers", 5, 200, own=True),)
        return "\n".join(verdict_sentences(Outputs("some/finetune", texts, (rank,), again=writing(0.49, 0.6))))

    assert (
        "A classifier could tell the answers of rank 64 from the finetune's (24 prompts, 4 answers each): it was right "
        "61 % of the time (p = 0.001). Between two runs of the finetune with different seeds it was right 49 % of the "
        "time (p = 0.6)."
    ) in words(0.001)
    assert "A classifier could not tell the answers of rank 64" in words(0.2)


def test_the_dearest_part_is_named_at_the_headline_s_rank() -> None:
    def parts(names: Sequence[str]) -> tuple[Part, ...]:
        return tuple(Part(name, 0, name, 0.1 + i / 100, 1.0, 0.5, 0.5) for i, name in enumerate(names))

    both = tuple(
        AttributionResult(rank, "module", "own answers", parts(names), 0.3, 1.0, 0.83)
        for rank, names in ((16, ["a", "b"]), (64, ["up_proj", "down_proj"]))
    )
    words = said({"base": 1.0, "rank 64": 0.1}, attribution=both)

    assert "Truncating down_proj alone to rank 64 costs the most: 0.11 nats per token." in words
    assert "Over 2 modules, the loss in the weights and the divergence have a rank correlation of 0.83" in words


def test_without_scores_there_is_no_verdict() -> None:
    assert verdict_sentences(Outputs("some/finetune", (), ())) == ()
    assert verdict_sentences(Outputs("some/finetune", (Text("wiki", 1, 1),), ())) == ()


def test_names_from_files_stay_on_one_line_and_short() -> None:
    hostile = "a\nb\u202e\x1b[31m" + "x" * 500
    for sentence in verdict_sentences(outputs({"base": 1.0, hostile: 0.2})):
        assert sentence.isprintable()
        assert len(sentence) < 400


def test_a_candidate_whose_name_says_what_it_is_is_not_called_so_twice() -> None:
    words = said({"base": 1.0, "model of mine": 0.2})

    assert "The model of mine " in words
    assert "model model" not in words
