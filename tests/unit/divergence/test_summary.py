"""Statistics of a text: against plain numpy in float64, and intervals against a known truth."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from deltarank.divergence import TokenStats, summarise_logits
from deltarank.divergence.bootstrap import resample
from deltarank.divergence.summary import blind_bound, tokens_to_tell
from deltarank.errors import JobError
from deltarank.results import Interval
from refusals import refused

LENGTHS = (40, 7, 120, 33, 1, 64)


def tokens(seed: int, length: int, size: float = 0.05) -> TokenStats:
    random = np.random.default_rng(seed)
    reference_nll = random.gamma(1.0, 2.0, length)
    floats = [
        size * random.gamma(0.4, 1.0, length),
        size * random.gamma(0.5, 1.0, length),
        reference_nll + size * random.normal(size=length),
        reference_nll,
        size * random.normal(size=length),
    ]
    rest = [random.random(length) < 0.9, random.random(length).astype(np.float32), np.arange(length, dtype=np.int32)]
    return TokenStats(*(each.astype(np.float32) for each in floats), *rest)  # type: ignore[arg-type]


def documents(seed: int = 0, size: float = 0.05) -> dict[str, TokenStats]:
    return {f"document {i}": tokens(100 * seed + i, length, size) for i, length in enumerate(LENGTHS)}


def column(texts: dict[str, TokenStats], name: str) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(getattr(each, name), np.float64) for each in texts.values()])


def test_every_figure_is_numpy_s_over_all_tokens() -> None:
    candidate, base = documents(1), documents(2, size=0.4)
    found = summarise_logits("held out", candidate, base=base, sampled_from_reference=True, seed=3)
    kld, nll, reference_nll, delta_p = (column(candidate, x) for x in ("kld", "nll", "reference_nll", "delta_p"))

    assert (found.text, found.tokens, found.documents, found.not_finite) == ("held out", sum(LENGTHS), 6, 0)
    percentiles = [found.kld.median, found.kld.p90, found.kld.p95, found.kld.p99, found.kld.p999, found.kld.max]
    assert percentiles == pytest.approx(np.percentile(kld, [50, 90, 95, 99, 99.9, 100]), rel=1e-12)
    assert found.kld.mean == pytest.approx(kld.mean(), rel=1e-12)
    assert found.kld_reverse.mean == pytest.approx(column(candidate, "kld_reverse").mean(), rel=1e-12)
    assert found.same_top_p.value == pytest.approx(column(candidate, "same_top").mean(), rel=1e-12)
    assert found.rms_delta_p.value == pytest.approx(math.sqrt((delta_p**2).mean()), rel=1e-12)
    assert found.mean_delta_p == pytest.approx(delta_p.mean(), rel=1e-9)
    assert found.ppl == pytest.approx(math.exp(nll.mean()), rel=1e-12)
    assert found.reference_ppl == pytest.approx(math.exp(reference_nll.mean()), rel=1e-12)
    assert found.log_ppl_ratio.value == pytest.approx((nll - reference_nll).mean(), rel=1e-9)
    assert found.log_ppl_ratio.value == pytest.approx(math.log(found.ppl / found.reference_ppl), rel=1e-6)
    assert found.kept is not None
    assert found.kept.value == pytest.approx(1 - kld.mean() / column(base, "kld").mean(), rel=1e-12)
    assert found.tokens_to_tell == pytest.approx(math.log(20) / kld.mean(), rel=1e-12)


def test_buckets_hold_every_token_once() -> None:
    candidate = documents(1)
    found = summarise_logits("held out", candidate)
    kld, position, top_p = (column(candidate, x) for x in ("kld", "position", "top_p"))

    for slices, places in ((found.by_position, position), (found.by_confidence, top_p)):
        assert sum(each.tokens for each in slices) == sum(LENGTHS)
        for each in slices:
            inside = (places >= each.first) & (places < each.last)
            assert each.tokens == inside.sum()
            assert each.kld == pytest.approx(kld[inside].mean(), rel=1e-12)
    assert [(each.first, each.last) for each in found.by_position] == [(0, 16), (16, 32), (32, 64), (64, 128)]
    assert sum(each.tokens * each.kld for each in found.by_document) == pytest.approx(kld.sum(), rel=1e-12)
    assert found.histogram is not None
    assert sum(found.histogram.counts) == sum(LENGTHS)
    at = found.histogram.edges.index(-2.0)
    assert found.histogram.counts[at] == ((kld >= 10**-2) & (kld < 10**-1.75)).sum()


def test_a_reference_that_is_certain_is_in_the_last_bucket_and_zeros_at_the_end_of_the_histogram() -> None:
    plain = tokens(0, 10)
    sure = TokenStats(*(np.zeros(10, np.float32),) * 5, plain.same_top, np.ones(10, np.float32), plain.position)
    found = summarise_logits("held out", {"one": sure})

    assert [(each.first, each.last, each.tokens) for each in found.by_confidence] == [(0.95, 1.0, 10)]
    assert found.histogram is not None
    assert found.histogram.counts[0] == 10


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    """The same resamples, drawn one by one, and percentiles at the widened level, from their definition."""
    candidate, base = documents(1), documents(2, size=0.4)
    found = summarise_logits("held out", candidate, base=base, seed=3)
    random = np.random.default_rng(3)
    means, kept = [], []
    names = list(candidate)
    for _ in range(2000):
        times = random.multinomial(6, [1 / 6] * 6)
        chosen = [name for name, n in zip(names, times, strict=True) for _ in range(n)]
        drawn, beside = ([of[name].kld.astype(float) for name in chosen] for of in (candidate, base))
        means.append(np.concatenate(drawn).mean())
        kept.append(1 - np.concatenate(drawn).mean() / np.concatenate(beside).mean())
    low = 100 * 0.5 * math.erfc(2.5705818366 * math.sqrt(6 / 5) / math.sqrt(2))  # t(5) at 97.5 %, on the normal's scale

    assert (found.kld.low, found.kld.high) == pytest.approx(np.percentile(means, [low, 100 - low]), rel=1e-9)
    assert found.kept is not None
    assert (found.kept.low, found.kept.high) == pytest.approx(np.percentile(kept, [low, 100 - low]), rel=1e-9)


def coverage(clusters: int, *, repetitions: int = 400) -> tuple[float, float]:
    """How often the interval holds the planted mean, and how often one that takes tokens as independent does.

    All repetitions are columns of one call: their data are independent, and they share the documents that are drawn.
    """
    random, naive = np.random.default_rng(clusters), 0
    truth, columns = 0.03, []
    for _ in range(repetitions):
        lengths = random.integers(50, 150, clusters)
        levels = truth * random.gamma(8.0, 1 / 8.0, clusters)  # documents differ by a third
        values = [random.gamma(0.5, 2.0 * level, n) for level, n in zip(levels, lengths, strict=True)]
        columns += [[len(each) for each in values], [each.sum() for each in values]]
        every = np.concatenate(values)
        naive += abs(every.mean() - truth) <= 1.96 * every.std() / math.sqrt(len(every))
    resampled = resample(np.array(columns).T, seed=0)
    intervals = [
        resampled.interval(lambda of, at=at: of[..., at + 1] / of[..., at]) for at in range(0, len(columns), 2)
    ]  # type: ignore[misc]
    held = sum(each.low is not None and each.high is not None and each.low <= truth <= each.high for each in intervals)
    return held / repetitions, naive / repetitions


@pytest.mark.parametrize(("clusters", "least"), [(5, 0.88), (12, 0.91), (50, 0.92)])
def test_the_interval_covers_nearly_as_often_as_it_says(clusters: int, least: float) -> None:
    """0.95 within 2.7 standard errors of 400 repetitions; a skewed mean over five documents stays 0.04 under it."""
    held, naive = coverage(clusters)

    assert least <= held <= 0.98
    assert naive < held - 0.25  # what a bootstrap over documents is for


def test_one_document_has_no_interval() -> None:
    found = summarise_logits("held out", {"one": tokens(0, 50)}, base={"one": tokens(1, 50, 0.4)})

    assert (found.kld.low, found.kld.high) == (None, None)
    assert found.kept is not None
    assert (found.kept.low, found.kept.high) == (None, None)


def test_one_seed_one_interval() -> None:
    found = [summarise_logits("held out", documents(1), seed=seed) for seed in (1, 1, 2)]

    assert found[0] == found[1]
    assert found[0].kld.low != found[2].kld.low


def test_the_base_keeps_nothing_and_the_reference_everything() -> None:
    base = documents(2)
    same = {
        name: TokenStats(
            np.zeros_like(each.kld), np.zeros_like(each.kld), each.reference_nll, each.reference_nll,
            np.zeros_like(each.kld), np.ones_like(each.same_top), each.top_p, each.position,
        )
        for name, each in base.items()
    }  # fmt: skip

    assert summarise_logits("held out", base, base=base).kept == Interval(0.0, 0.0, 0.0)
    found = summarise_logits("held out", same, base=base, sampled_from_reference=True)
    assert found.kept == Interval(1.0, 1.0, 1.0)
    assert (found.kld.mean, found.kld.low, found.kld.high, found.tokens_to_tell) == (0.0, 0.0, 0.0, None)
    assert {(each.one_reply, each.two_replies) for each in found.blind} == {(0.5, 0.5)}
    assert summarise_logits("held out", same, base=same).kept is None


def test_kept_pairs_only_tokens_that_both_have() -> None:
    candidate, base = {"one": tokens(1, 30), "two": tokens(2, 30)}, {"one": tokens(3, 30), "two": tokens(4, 30)}
    candidate["one"].kld[4] = np.nan
    base["two"].kld[9] = np.nan
    found = summarise_logits("held out", candidate, base=base)
    kld, beside = column(candidate, "kld"), column(base, "kld")
    both = np.isfinite(kld) & np.isfinite(beside)

    assert (found.tokens, found.not_finite, both.sum()) == (59, 1, 58)
    assert found.kept is not None
    assert found.kept.value == pytest.approx(1 - kld[both].sum() / beside[both].sum(), rel=1e-12)


def test_bounds_for_judges_are_stated_for_sampled_text_only() -> None:
    found = summarise_logits("held out", documents(1), sampled_from_reference=False)

    assert (found.tokens_to_tell, found.blind) == (None, ())


def test_tokens_that_are_not_finite_are_counted_and_left_out() -> None:
    texts = documents(1)
    whole = summarise_logits("held out", texts)
    texts["bad"] = tokens(9, 20)
    texts["bad"].kld[:] = np.nan
    found = summarise_logits("held out", texts)

    assert found.not_finite == 20
    assert (found.tokens, found.documents, found.kld.mean) == (whole.tokens, whole.documents, whole.kld.mean)


def test_a_text_without_a_single_number_is_refused() -> None:
    bad = tokens(0, 5)
    bad.kld[:] = np.nan

    with refused("outputs-not-finite", JobError, match="all 5 tokens have a logit that is NaN or infinite"):
        summarise_logits("held out", {"one": bad})


def total_variation(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return float(np.abs(p - q).sum() / 2)


@pytest.mark.parametrize("seed", range(30))
def test_no_judge_beats_the_blind_bound(seed: int) -> None:
    """The best judge's score is 1/2 + TV/2; for replies of up to three tokens it can be written out."""
    random = np.random.default_rng(seed)
    p, q = random.dirichlet([random.choice([0.2, 1, 20])] * 5, size=2)
    if seed % 3 == 0:  # nearly alike, and one of them almost without a token of the other
        q = (1 - 1e-3) * p + 1e-3 * q
    kld = float((p * np.log(p / q)).sum())
    for tokens_ in (1, 2, 3):
        many = [p, q]
        for _ in range(tokens_ - 1):
            many = [np.outer(each, one).ravel() for each, one in zip(many, (p, q), strict=True)]
        bound = blind_bound(kld, tokens_)
        pair, turned = np.outer(*many).ravel(), np.outer(*reversed(many)).ravel()

        assert 0.5 + total_variation(*many) / 2 <= bound.one_reply + 1e-12
        assert 0.5 + total_variation(pair, turned) / 2 <= bound.two_replies + 1e-12
        assert bound.one_reply <= bound.two_replies <= 1


def test_an_ideal_judge_reaches_the_odds_after_as_many_tokens_as_said() -> None:
    """A simulation: the likelihood ratio after `tokens_to_tell` tokens of P is 20 on average, in its logarithm."""
    random = np.random.default_rng(0)
    p, q = random.dirichlet([5.0] * 8, size=2)
    needed = tokens_to_tell(float((p * np.log(p / q)).sum()))
    assert needed is not None
    drawn = random.choice(8, p=p, size=(20_000, round(needed)))
    evidence = np.log(p / q)[drawn].sum(axis=1)

    assert evidence.mean() == pytest.approx(math.log(20) * round(needed) / needed, rel=0.03)
