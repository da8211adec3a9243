"""What holds of every pair of predictions: against scipy in float64, and against what KL is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr

from deltarank.divergence import TokenStats, compare_logits

Pair = tuple[torch.Tensor, torch.Tensor]

FLOATS = ["kld", "kld_reverse", "nll", "reference_nll", "delta_p", "top_p"]


def logits(seed: int, tokens: int, vocabulary: int, scale: float) -> torch.Tensor:
    return scale * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed))


def oracle(reference: torch.Tensor, candidate: torch.Tensor, targets: list[int]) -> dict[str, NDArray[np.float64]]:
    """scipy's relative entropy, in float64, from the definition."""
    log_p, log_q = (log_softmax(each.double().numpy(), axis=1) for each in (reference, candidate))
    p, q = np.exp(log_p), np.exp(log_q)
    rows = np.arange(len(p))
    return {
        "kld": rel_entr(p, q).sum(axis=1),
        "kld_reverse": rel_entr(q, p).sum(axis=1),
        "nll": -log_q[rows, targets],
        "reference_nll": -log_p[rows, targets],
        "delta_p": q[rows, targets] - p[rows, targets],
        "top_p": p.max(axis=1),
        "same_top": p.argmax(axis=1) == q.argmax(axis=1),
    }


@st.composite
def pairs(draw: st.DrawFn, share: float | None = None) -> Pair:
    """Logits of a reference and of a candidate: the reference with `share` of some noise, or the noise alone."""
    seed, tokens, vocabulary = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 9)), draw(st.integers(2, 700))
    reference = logits(seed, tokens, vocabulary, draw(st.floats(0.01, 30)))
    noise = logits(seed + 1, tokens, vocabulary, draw(st.floats(1e-6, 20)))
    return reference, noise if share is None else reference + share * noise


def _allowed(name: str, value: NDArray[np.float64]) -> NDArray[np.float64]:
    """A difference of float32 logarithms is off by some 1e-7, which moves a KL by that times its root.

    Over 6,000 pairs drawn at random the largest was 4e-8 times the root, beside 4e-6 of the value.
    """
    if "kld" in name:
        size = np.maximum(value, 0)  # scipy's sum may end at -1e-17
        return 1e-11 + 4e-6 * size + 2e-7 * np.sqrt(size)
    return 2e-7 + (2e-6 + 3e-7 * np.abs(value) if "nll" in name else 0 * value)


@given(pairs(1.0), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_equal_to_scipy_in_float64(pair: Pair, target: int) -> None:
    reference, candidate = pair
    targets = [target % reference.shape[1]] * len(reference)
    found, expected = compare_logits(reference, candidate, targets), oracle(reference, candidate, targets)

    for name in FLOATS:
        off = np.abs(getattr(found, name) - expected[name])
        assert (off <= _allowed(name, expected[name])).all(), name
    assert list(found.same_top) == list(expected["same_top"])


def test_equal_to_scipy_however_large_the_logits_are() -> None:
    """Many tokens at once: the largest errors are rare, and come with logits of which the normalisers differ much."""
    random = torch.Generator().manual_seed(0)
    sizes, distances = 30 * torch.rand(4000, 1, generator=random), 20 * torch.rand(4000, 1, generator=random)
    reference, noise = (torch.randn(4000, 200, generator=random) for _ in range(2))
    reference, candidate = sizes * reference, sizes * reference + distances * noise
    found, expected = compare_logits(reference, candidate, [0] * 4000), oracle(reference, candidate, [0] * 4000)

    for name in ("kld", "kld_reverse"):
        assert (np.abs(getattr(found, name) - expected[name]) <= _allowed(name, expected[name])).all(), name


@given(pairs(1e-3))
@settings(max_examples=80, deadline=None)
def test_never_below_zero(pair: Pair) -> None:
    found = compare_logits(*pair, [0] * len(pair[0]))

    assert min(found.kld.min(), found.kld_reverse.min()) >= 0


@given(pairs())
@settings(max_examples=40, deadline=None)
def test_equal_logits_are_at_distance_zero(pair: Pair) -> None:
    found = compare_logits(pair[0], pair[0].clone(), [0] * len(pair[0]))

    assert not found.kld.any()
    assert not found.kld_reverse.any()
    assert not found.delta_p.any()
    assert found.same_top.all()


@given(pairs(1.0), st.floats(-50, 50))
@settings(max_examples=40, deadline=None)
def test_a_constant_added_to_logits_changes_nothing(pair: Pair, constant: float) -> None:
    reference, candidate = pair
    plain = compare_logits(reference, candidate, [0] * len(reference))
    moved = compare_logits(reference - constant, candidate + constant, [0] * len(reference))

    assert moved.kld == pytest.approx(plain.kld, rel=1e-3, abs=1e-9)
    assert moved.kld_reverse == pytest.approx(plain.kld_reverse, rel=1e-3, abs=1e-9)


@given(pairs())
@settings(max_examples=40, deadline=None)
def test_exchanged_roles_exchange_the_directions(pair: Pair) -> None:
    one, other = pair
    there, back = compare_logits(one, other, [0] * len(one)), compare_logits(other, one, [0] * len(one))

    for one_way, other_way in ((there.kld, back.kld_reverse), (there.kld_reverse, back.kld)):
        size = other_way.astype(np.float64)
        assert (np.abs(one_way - other_way) <= 2 * _allowed("kld", size)).all()
    assert list(there.nll) == list(back.reference_nll)
    assert list(there.delta_p) == list(-back.delta_p)


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 19))
@settings(max_examples=20, deadline=None)
def test_parts_join_to_the_whole(seed: int, cut: int) -> None:
    reference, candidate, targets = logits(seed, 20, 50, 3), logits(seed + 1, 20, 50, 3), torch.arange(20)
    parts = [
        compare_logits(reference[rows], candidate[rows], targets[rows], positions=targets[rows])
        for rows in (slice(0, cut), slice(cut, 20))
    ]
    whole, joined = compare_logits(reference, candidate, targets), TokenStats.concatenate(parts)

    assert list(joined.kld) == pytest.approx(list(whole.kld), rel=1e-6)
    assert list(joined.position) == list(whole.position) == list(range(20))
    assert list(whole.take(slice(3, 5)).position) == [3, 4]


def test_a_distance_far_under_float32_rounding_is_found() -> None:
    """Logits that differ by 1e-5: KL 5e-11, which a sum of p (log p - log q) in float32 drowns in 1e-7 of noise."""
    reference = logits(0, 64, 30_000, 3)
    candidate = reference + logits(1, 64, 30_000, 1e-5)
    found = compare_logits(reference, candidate, [0] * 64)

    assert float(found.kld.mean()) == pytest.approx(oracle(reference, candidate, [0] * 64)["kld"].mean(), rel=0.01)


def test_a_long_vocabulary_costs_no_digits() -> None:
    reference = logits(0, 4, 150_000, 3)
    candidate = reference + logits(1, 4, 150_000, 0.05)
    found, expected = compare_logits(reference, candidate, [0] * 4), oracle(reference, candidate, [0] * 4)

    assert found.kld == pytest.approx(expected["kld"], rel=5e-6)
    assert found.nll == pytest.approx(expected["nll"], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_dtype_are_upcast_first(dtype: torch.dtype) -> None:
    reference, candidate = logits(0, 8, 100, 3).to(dtype), logits(1, 8, 100, 3).to(dtype)
    found = compare_logits(reference, candidate, range(8))

    assert found.kld == pytest.approx(oracle(reference, candidate, list(range(8)))["kld"], rel=1e-5)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_keep_their_place_as_nan(side: int, bad: float) -> None:
    both = [logits(0, 5, 30, 3), logits(1, 5, 30, 3)]
    both[side][2, 7] = bad
    found = compare_logits(both[0], both[1], [0] * 5)

    assert list(found.is_finite) == [True, True, False, True, True]
    assert all(np.isnan(getattr(found, name)[2]) for name in FLOATS)
    assert not found.same_top[2]


def test_tokens_that_both_rule_out_count_for_nothing() -> None:
    reference, candidate = logits(0, 5, 40, 3), logits(1, 5, 40, 3)
    plain = compare_logits(reference[:, :30], candidate[:, :30], [0] * 5)
    for each in (reference, candidate):
        each[:, 30:] = -torch.inf

    assert compare_logits(reference, candidate, [0] * 5).kld == pytest.approx(plain.kld, rel=1e-6)


def test_a_token_that_only_the_candidate_rules_out_is_infinitely_far_and_not_counted_in() -> None:
    reference, candidate = logits(0, 5, 40, 3), logits(1, 5, 40, 3)
    candidate[:, 3] = -torch.inf

    assert not compare_logits(reference, candidate, [0] * 5).is_finite.any()


def test_vocabularies_of_two_lengths_are_compared_on_what_both_have() -> None:
    reference, candidate = logits(0, 5, 40, 3), logits(1, 5, 33, 3)
    found = compare_logits(reference, candidate, [0, 1, 2, 3, 35])
    expected = oracle(reference[:, :33], candidate, [0, 1, 2, 3, 4])

    assert found.kld[:4] == pytest.approx(expected["kld"][:4], rel=1e-5)
    assert list(found.is_finite) == [True] * 4 + [False]  # the fifth token of the text is none of the candidate's


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    stats = compare_logits(logits(0, 5, 30, 3), logits(1, 5, 30, 3), [0] * 5, positions=range(7, 12))
    stats.save(tmp_path / "document.npz")
    again = TokenStats.load(tmp_path / "document.npz")

    assert [*tmp_path.iterdir()] == [tmp_path / "document.npz"]
    for name in [*FLOATS, "same_top", "position"]:
        assert np.array_equal(getattr(again, name), getattr(stats, name))
        assert getattr(again, name).dtype == getattr(stats, name).dtype


def test_no_tokens_are_no_tokens() -> None:
    assert len(compare_logits(torch.zeros(0, 9), torch.zeros(0, 9), [])) == 0


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="targets"):
        compare_logits(torch.zeros(4, 9), torch.zeros(4, 9), [0] * 3)
    with pytest.raises(ValueError, match="one length"):
        TokenStats(*(np.zeros(n, np.float32) for n in (1, 1, 1, 1, 1, 1, 1, 2)))  # type: ignore[arg-type]
