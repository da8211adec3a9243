"""Attribution: its figures against their definitions, and its intervals over documents."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy.stats import spearmanr

from deltarank.divergence import (
    PartMeasurement,
    TokenStats,
    documents_needed,
    summarise_attribution,
    summarise_logits,
)

RANDOM = np.random.default_rng(0)
SIZES = (3, 40, 11, 25, 8, 17)
"""Scored tokens of each document."""


def scores(kld: float, sizes: Sequence[int] = SIZES) -> dict[str, TokenStats]:
    made = {}
    for number, size in enumerate(sizes):
        klds = (kld * RANDOM.lognormal(0, 1, size)).astype(np.float32)
        zeros, same = np.zeros(size, np.float32), np.ones(size, np.bool_)
        made[f"{number}"] = TokenStats(klds, klds, zeros, zeros, zeros, same, zeros, np.arange(size, dtype=np.int32))
    return made


def times(factor: float, stats: Mapping[str, TokenStats]) -> dict[str, TokenStats]:
    """All divergences times a power of two, which is exact."""
    rest = ("nll", "reference_nll", "delta_p", "same_top", "top_p", "position")
    return {
        name: TokenStats(*(np.float32(factor) * each.kld,) * 2, *(getattr(each, column) for column in rest))
        for name, each in stats.items()
    }


def part(name: str, lost: float, stats: Mapping[str, TokenStats]) -> PartMeasurement:
    return PartMeasurement(name, None, name, lost, 2 * lost, stats)


def test_each_figure_is_what_its_definition_says() -> None:
    whole = scores(0.3)
    parts = [part(f"{i}", lost, scores(kld)) for i, (lost, kld) in enumerate([(1, 0.2), (5, 0.1), (3, 0.05), (2, 0.1)])]
    found = summarise_attribution(8, "module", "own", parts, whole, seed=3)

    def mean(stats: Mapping[str, TokenStats]) -> float:
        return float(np.concatenate([each.kld for each in stats.values()]).mean(dtype=np.float64))

    klds = [mean(each.stats) for each in parts]
    assert {each.name: each.kld for each in found.parts} == pytest.approx(dict(zip("0123", klds, strict=True)))
    assert found.together == pytest.approx(mean(whole))
    assert found.additivity == pytest.approx(sum(klds) / mean(whole))
    assert found.rank_correlation == pytest.approx(spearmanr([1, 5, 3, 2], klds).statistic)


def test_a_part_has_the_interval_that_a_candidate_with_its_scores_has() -> None:
    stats = {name: scores(0.1 + 0.1 * i) for i, name in enumerate("abc")}
    parts = [part(name, 1, stats[name]) for name in stats]
    found = summarise_attribution(8, "module", "own", parts, stats["b"], seed=7)

    for each in found.parts:
        kld = summarise_logits("own", stats[each.name], seed=7).kld
        assert (each.low, each.high) == pytest.approx((kld.low, kld.high))
        assert kld.low < kld.mean < kld.high  # type: ignore[operator]
    kld = summarise_logits("own", stats["b"], seed=7).kld
    assert (found.together_low, found.together_high) == pytest.approx((kld.low, kld.high))


def test_documents_are_drawn_for_all_parts_alike() -> None:
    """Parts that are multiples of the whole in every token: nothing is uncertain about their sum, or their order."""
    whole = scores(0.3)
    parts = [part(f"{i}", i + 1, times(2.0**-i, whole)) for i in range(4)]
    found = summarise_attribution(8, "module", "own", parts, whole)

    assert (found.additivity_low, found.additivity, found.additivity_high) == pytest.approx((1.875,) * 3)
    correlation = (found.rank_correlation_low, found.rank_correlation, found.rank_correlation_high)
    assert correlation == pytest.approx((-1.0,) * 3)


def test_one_document_has_no_interval_and_no_divergence_no_ratio() -> None:
    one = scores(0.1, sizes=(20,))
    found = summarise_attribution(8, "module", "own", [part(name, i, one) for i, name in enumerate("abc")], one)
    assert found.parts[0].low is found.together_high is found.additivity_low is None
    assert found.rank_correlation is None  # all KLDs are equal

    none = times(0.0, scores(0.1))
    found = summarise_attribution(8, "module", "own", [part("a", 1, none)], none)
    assert (found.together, found.together_low, found.additivity, found.additivity_low) == (0, 0, None, None)


def test_as_many_documents_as_the_width_needs() -> None:
    """A half as wide interval needs four times the documents; the unit of the divergence does not matter."""
    stats = scores(0.3, [20] * 200)
    few, many = (documents_needed(stats, relative_width=width) for width in (0.1, 0.05))
    assert few is not None
    assert many is not None
    assert 4 * (few - 1) <= many <= 4 * few
    assert documents_needed(times(2.0, stats), relative_width=0.1) == few

    chosen = {name: stats[name] for name in list(stats)[:few]}
    kld = summarise_logits("text", chosen).kld
    assert kld.low is not None
    assert kld.high is not None
    assert (kld.high - kld.low) / 2 / kld.mean == pytest.approx(0.1, rel=0.4)


def test_documents_without_a_divergence_need_no_number() -> None:
    assert documents_needed(times(0.0, scores(0.3)), relative_width=0.2) is None
    assert documents_needed(scores(0.3, [9]), relative_width=0.2) is None
    assert documents_needed(scores(0.3), relative_width=10.0) == 16
