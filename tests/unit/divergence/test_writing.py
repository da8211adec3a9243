"""Texts beside texts: likeness against its definition, and a test that finds what is there and nothing else."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from deltarank.divergence import Answer, similarity_p, summarise_writing
from deltarank.divergence.classifier import cross_validated_log_odds, fit_logistic_regressions
from deltarank.divergence.writing import mean_cosine, two_sample_test, words

VOCABULARY = [f"w{i}" for i in range(400)]


def answers(texts: Sequence[str], prompts: Sequence[int]) -> list[Answer]:
    return [Answer(prompt, 0, (), text, ()) for text, prompt in zip(texts, prompts, strict=True)]


class Author:
    """Writes on subjects, a vocabulary each; `habit` makes a seventh of all words more frequent by that share."""

    def __init__(self, seed: int, *, habit: float = 0.0) -> None:
        self.random = np.random.default_rng(seed)
        self.weights = 1 / np.arange(1, 401)
        self.weights[6::7] *= 1 + habit

    def write(self, prompt: int, length: int = 60) -> str:
        on_the_subject = self.weights.copy()
        on_the_subject[prompt * 16 : prompt * 16 + 16] += 0.2
        return " ".join(self.random.choice(VOCABULARY, length, p=on_the_subject / on_the_subject.sum()))


def p_values(habit: float, repetitions: int, *, prompts: int = 12, samples: int = 4) -> list[float]:
    asked = [prompt for prompt in range(prompts) for _ in range(samples)]
    found = []
    for seed in range(repetitions):
        one, other = Author(2 * seed), Author(2 * seed + 1, habit=habit)
        texts = [[author.write(prompt) for prompt in asked] for author in (one, other)]
        test = two_sample_test(*texts, asked, seed=seed, permutations=99)
        assert test is not None
        found.append(test.p_value)
    return found


def rejected(p: Sequence[float], level: float = 0.05) -> tuple[float, float, float]:
    """The share of p values at or under the level, and its exact 95 % interval (Clopper and Pearson 1934)."""
    hits = int(sum(each <= level for each in p))
    interval = stats.binomtest(hits, len(p)).proportion_ci(method="exact")
    return hits / len(p), float(interval.low), float(interval.high)


@pytest.mark.slow
def test_one_author_is_distinguished_from_himself_at_the_nominal_rate() -> None:
    """The A/A arm, 200 times: the rate's interval holds 0.05, and the p values are spread evenly."""
    p = p_values(0.0, 200)
    _, low, high = rejected(p)

    assert low <= 0.05 <= high
    assert stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.slow
def test_the_power_grows_with_the_difference() -> None:
    table = {habit: rejected(p_values(habit, 40)) for habit in (0.0, 0.25, 0.5, 1.0, 2.0)}
    rates = [rate for rate, _, _ in table.values()]

    assert rates[-1] == 1.0
    assert all(after >= before - 0.1 for before, after in itertools.pairwise(rates))


def test_equal_authors_are_rarely_distinguished_and_different_ones_are() -> None:
    """The laws above in short: 20 repetitions, of which at most five by an even chance of one in twenty (p < 0.001)."""
    assert rejected(p_values(0.0, 20))[0] <= 0.25
    assert rejected(p_values(2.0, 5))[0] == 1.0


def test_the_p_value_is_at_the_nominal_rate_even_where_all_texts_to_a_prompt_are_alike() -> None:
    """Greedy models: nothing differs, nothing can be told, and p is 1."""
    asked = [prompt for prompt in range(8) for _ in range(3)]
    texts = [f"the answer to {prompt}" for prompt in asked]
    test = two_sample_test(texts, texts, asked, seed=0)

    assert test is not None
    assert (test.accuracy, test.p_value) == (0.5, 1.0)


def test_subjects_do_not_pass_for_authors() -> None:
    """Every prompt has words of its own; a classifier that learned them would know the prompts, not who answers."""
    asked = [prompt for prompt in range(10) for _ in range(3)]
    random = np.random.default_rng(0)
    texts = [[f"topic{prompt} " * 20 + f"word{random.integers(3)}" for prompt in asked] for _ in range(2)]
    test = two_sample_test(*texts, asked, seed=0)

    assert test is not None
    assert test.p_value > 0.05


def test_one_word_that_only_one_author_writes_is_found() -> None:
    asked = [prompt for prompt in range(10) for _ in range(3)]
    author = Author(0)
    one, other = ([author.write(prompt) for prompt in asked] for _ in range(2))
    test = two_sample_test(one, [text + " shivers" for text in other], asked, seed=0, permutations=999)

    assert test is not None
    assert test.accuracy > 0.95
    assert test.p_value == 1 / 1000


def test_two_few_texts_have_no_test() -> None:
    assert two_sample_test(["a"] * 9, ["b"] * 9, [0] * 9, seed=0) is None  # one prompt
    assert two_sample_test(["a", "c"], ["b", "d"], [0, 1], seed=0) is None  # four labellings
    assert two_sample_test(list("abcde"), list("fghij"), range(5), seed=0) is not None  # 32


def test_one_seed_one_p_value() -> None:
    asked = [prompt for prompt in range(8) for _ in range(2)]
    one, other = ([author.write(prompt) for prompt in asked] for author in (Author(0), Author(1)))

    assert two_sample_test(one, other, asked, seed=3) == two_sample_test(one, other, asked, seed=3)
    assert two_sample_test(one, other, asked, seed=3) != two_sample_test(one, other, asked, seed=4)


@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0, 100.0])
def test_each_labelling_has_the_weights_that_sklearn_finds(strength: float) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 25)) / 5
    labels = (random.random((40, 6)) < 0.5).astype(float)
    found = fit_logistic_regressions(features, labels, inverse_penalty=strength)
    for column in range(6):
        oracle = LogisticRegression(C=strength, fit_intercept=False, tol=1e-10, max_iter=10_000)
        expected = oracle.fit(features, labels[:, column]).coef_[0]

        assert found[:, column] == pytest.approx(expected, abs=2e-3 * np.abs(expected).max())


def test_no_text_is_scored_by_a_classifier_that_saw_it() -> None:
    """A text's own label has no part in its score; those of the other folds have."""
    random = np.random.default_rng(0)
    features, folds = random.normal(size=(20, 5)), np.arange(20) % 4
    labels = (random.random((20, 1)) < 0.5).astype(float)
    before = cross_validated_log_odds(features, labels, folds, inverse_penalty=1.0)
    labels[folds == 2] = 1 - labels[folds == 2]
    after = cross_validated_log_odds(features, labels, folds, inverse_penalty=1.0)

    assert np.array_equal(before[folds == 2], after[folds == 2])
    assert not np.isclose(before[folds != 2], after[folds != 2]).any()


def test_the_cosine_is_that_of_the_definition() -> None:
    reference = ["The cat sat.", "a cat, a cat!", "dogs bark", "the dog barks"]
    candidate = ["the cat stood", "no cats", "dogs bark loudly", "bark bark"]
    prompts = [0, 0, 1, 1]
    held = Counter(word for text in reference for word in set(words(text)))

    def vector(text: str) -> dict[str, float]:
        return {w: n * (1 + math.log(5 / (1 + held[w]))) for w, n in Counter(words(text)).items()}

    def alike(one: str, other: str) -> float:
        a, b = vector(one), vector(other)
        norms = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
        return sum(a[w] * b.get(w, 0.0) for w in a) / norms

    pairs = [(i, j) for i in range(4) for j in range(4) if prompts[i] == prompts[j]]
    expected = np.mean([alike(reference[i], candidate[j]) for i, j in pairs])

    assert mean_cosine(reference, candidate, prompts) == pytest.approx(expected, rel=1e-12)


def test_similarity_tells_the_base_from_a_second_run_only_if_it_does_at_prompt_after_prompt() -> None:
    """p is that of Wilcoxon's signed-rank test on the cosines of single prompts."""
    random = np.random.default_rng(3)
    prompts = list(range(12))

    def texts(first: int, last: int) -> list[str]:
        return [" ".join(random.choice(VOCABULARY[first:last], 30)) for _ in prompts]

    reference, again, other = texts(0, 60), texts(0, 60), texts(30, 400)
    asked = [answers(each, prompts) for each in (reference, again, other)]

    assert similarity_p(asked[0], asked[1], asked[2]) == pytest.approx(_signed_rank(reference, again, other), abs=1e-9)
    assert similarity_p(asked[0], asked[1], asked[2]) < 0.01
    assert similarity_p(asked[0], asked[1], answers(texts(0, 60), prompts)) > 0.05
    assert similarity_p(asked[0], asked[1], asked[1]) == 1.0


def _signed_rank(reference: Sequence[str], again: Sequence[str], other: Sequence[str]) -> float:
    """The share of all signs of the differences whose sum of positive ranks is as large as the one found."""
    held = Counter(word for text in reference for word in set(words(text)))

    def cosine(one: str, two: str) -> float:
        a, b = (
            {w: n * (1 + math.log((1 + len(reference)) / (1 + held[w]))) for w, n in Counter(words(text)).items()}
            for text in (one, two)
        )
        norms = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
        return sum(x * b.get(w, 0.0) for w, x in a.items()) / norms

    gaps = [cosine(r, a) - cosine(r, o) for r, a, o in zip(reference, again, other, strict=True)]
    ranks = stats.rankdata(np.abs(gaps))
    found = sum(rank for rank, gap in zip(ranks, gaps, strict=True) if gap > 0)
    signs = np.array(list(itertools.product((0, 1), repeat=len(gaps))))
    return float((signs @ ranks >= found).mean())


def test_texts_without_a_word_are_like_each_other_and_nothing_else() -> None:
    assert mean_cosine(["", "..."], ["!", ""], [0, 1]) == 1.0
    assert mean_cosine(["", "word"], ["word", ""], [0, 1]) == 0.0


def test_words_of_scripts_without_spaces_are_their_signs() -> None:
    assert words("Grüße, WELT's 3 cats_2") == ["grüße", "welt", "s", "3", "cats_2"]
    assert words("我吃early早餐。") == ["我", "吃", "early", "早", "餐"]


def test_a_writing_is_counted_over_the_candidate_s_texts() -> None:
    asked = [0, 0, 1, 1]
    found = summarise_writing(
        answers(["a b", "a b c", "d", "d e"], asked), answers(["x y", "x x x", "x", ""], asked), seed=0
    )

    assert (found.prompts, found.samples) == (2, 2)
    assert found.distinct_words == 2 / 6
    assert found.words == 6 / 4
    assert found.cosine == 0.0
    assert found.test is not None  # 36 labellings
    assert summarise_writing(answers(["", ""], [0, 1]), answers(["", ""], [0, 1]), seed=0).distinct_words == 0.0


def test_answers_to_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        summarise_writing(answers(["a", "b"], [0, 1]), answers(["a", "b"], [0, 2]), seed=0)
