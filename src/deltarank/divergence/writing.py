"""Texts that a candidate writes, compared with the finetune's: similarity, vocabulary, length, a two-sample test."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import wilcoxon
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from deltarank.divergence.arrays import FloatArray
from deltarank.divergence.classifier import cross_validated_log_odds
from deltarank.divergence.texts import Document
from deltarank.results import TwoSampleTest, Writing

PERMUTATIONS = 999
FOLDS = 5
INVERSE_PENALTY = 10.0
_FEWEST_LABELLINGS = 20
"""With fewer, a permutation test cannot reach p = 0.05."""

_UNSPACED_SCRIPTS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED_SCRIPTS}]|[^\W{_UNSPACED_SCRIPTS}]+")


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt.

    prompt_index    index of the prompt
    sample_index    which of the answers to that prompt it is
    ids             its tokens, including the one that ends it, if it ended
    text            its tokens decoded, without special tokens
    prompt_ids      the tokens of the prompt
    """

    prompt_index: int
    sample_index: int
    ids: tuple[int, ...]
    text: str
    prompt_ids: tuple[int, ...]

    def to_document(self) -> Document:
        """The prompt followed by the answer, of which every token is scored: where it ends is behaviour, too."""
        scored = (False,) * len(self.prompt_ids) + (True,) * len(self.ids)
        name = f"prompt {self.prompt_index + 1}, answer {self.sample_index + 1}"
        return Document(name, (*self.prompt_ids, *self.ids), scored)


def summarise_writing(reference: Sequence[Answer], candidate: Sequence[Answer], *, seed: int) -> Writing:
    """A candidate's answers compared with the reference's answers to the same prompts.

    Raises:
        ValueError: the prompts of the two differ.
    """
    prompts = [each.prompt_index for each in reference]
    if prompts != [each.prompt_index for each in candidate] or not prompts:
        raise ValueError("expected answers of both to the same prompts, in the same order and number")
    reference_texts, candidate_texts = ([each.text for each in answers] for answers in (reference, candidate))
    words_by_text = [words(text) for text in candidate_texts]
    total = sum(map(len, words_by_text))
    return Writing(
        prompts=len(set(prompts)),
        samples=len(prompts) // len(set(prompts)),
        cosine=mean_cosine(reference_texts, candidate_texts, prompts),
        distinct_words=len(set().union(*words_by_text)) / total if total else 0.0,
        words=total / len(words_by_text),
        test=two_sample_test(reference_texts, candidate_texts, prompts, seed=seed),
    )


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation. In scripts without spaces, each character is a word."""
    return _WORD.findall(text.lower())


def mean_cosine(reference: Sequence[str], candidate: Sequence[str], prompts: Sequence[int]) -> float:
    """Cosine similarity of TF-IDF vectors of words: its mean over pairs of texts to a prompt, averaged over prompts.

    A word weighs 1 + ln((1 + n) / (1 + texts that contain it)), counted over the n texts of the reference, so that all
    candidates are compared in one space. Two texts without any word have similarity 1.
    """
    return float(np.mean(_cosines(reference, candidate, prompts)))


def _cosines(reference: Sequence[str], candidate: Sequence[str], prompts: Sequence[int]) -> list[float]:
    """The mean over pairs of texts to each prompt."""
    counts = _count_terms(CountVectorizer(analyzer=words), [*reference, *candidate])
    vectors = TfidfTransformer().fit(counts[: len(reference)]).transform(counts)
    reference_vectors, candidate_vectors = vectors[: len(reference)], vectors[len(reference) :]
    groups = [np.asarray(prompts) == each for each in np.unique(prompts)]
    return [_mean_pair_cosine(reference_vectors[rows], candidate_vectors[rows]) for rows in groups]


def similarity_p(reference: Sequence[Answer], again: Sequence[Answer], base: Sequence[Answer]) -> float:
    """p of the hypothesis that the base's answers are as similar to the reference's as those of a second run are.

    Wilcoxon's signed-rank test on the TF-IDF cosines, paired by prompt. Where it is large, text similarity does not
    even tell the base from the finetune itself, and says nothing about other candidates.
    """
    prompts = [each.prompt_index for each in reference]
    texts, own, other = ([each.text for each in answers] for answers in (reference, again, base))
    differences = np.subtract(_cosines(texts, own, prompts), _cosines(texts, other, prompts))
    return float(wilcoxon(differences, alternative="greater").pvalue) if np.any(differences) else 1.0


def two_sample_test(
    reference: Sequence[str],
    candidate: Sequence[str],
    prompts: Sequence[int],
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> TwoSampleTest | None:
    """A classifier two-sample test: can the two kinds of text be told apart (C2ST, Lopez-Paz and Oquab 2017)?

    Features are TF-IDF of words and of character n-grams up to three, minus their mean over all texts to the prompt, so
    that the subject of a prompt tells nothing. A logistic regression is fitted to the texts of four fifths of the
    prompts and predicts the rest. The statistic is its mean log odds for the correct label. Labels are permuted within
    each prompt, where the texts of equal models are exchangeable, and p = (1 + b) / (1 + B), with b of B permutations
    reaching the statistic. So equal models get p <= 0.05 at most one time in twenty, whatever the texts are.

    Returns:
        None where there are too few texts for a p of 0.05.
    """
    groups = np.tile(np.asarray(prompts), 2)
    if len(np.unique(groups)) < 2 or _count_labellings(prompts) < _FEWEST_LABELLINGS:
        return None
    random = np.random.default_rng(seed)
    labels = _permute_labels(groups, permutations, random)
    folds = _assign_folds(groups, random)
    features = _features([*reference, *candidate], groups)
    log_odds = cross_validated_log_odds(features, labels, folds, inverse_penalty=INVERSE_PENALTY)
    correct = np.where(labels == 1, log_odds, -log_odds)
    means = correct.mean(axis=0)
    reached = int((means[1:] >= means[0] - 1e-9 * np.abs(means).max()).sum())
    accuracy = float((correct[:, 0] > 0).mean() + (correct[:, 0] == 0).mean() / 2)
    return TwoSampleTest(accuracy, (1 + reached) / (1 + permutations), permutations)


def _count_labellings(prompts: Sequence[int]) -> float:
    """How many ways there are to label half of the texts to each prompt."""
    _, samples = np.unique(np.asarray(prompts), return_counts=True)
    return math.exp(min(math.fsum(math.log(math.comb(2 * int(n), int(n))) for n in samples), 700.0))


def _permute_labels(groups: NDArray[np.intp], permutations: int, random: np.random.Generator) -> FloatArray:
    """(texts, 1 + permutations): first the true labels, 1 for the candidate; then permuted within each prompt."""
    truth = np.repeat([0.0, 1.0], len(groups) // 2)
    labels = np.tile(truth[:, None], (1, 1 + permutations))
    for each in np.unique(groups):
        rows = np.flatnonzero(groups == each)
        order = random.random((len(rows), permutations)).argsort(axis=0)
        labels[rows, 1:] = truth[rows][order]
    return labels


def _assign_folds(groups: NDArray[np.intp], random: np.random.Generator) -> NDArray[np.intp]:
    """The fold of each text: all texts to a prompt are in one fold, and folds have about equally many prompts."""
    prompts, inverse = np.unique(groups, return_inverse=True)
    fold_of_prompt: NDArray[np.intp] = random.permutation(len(prompts)) % min(FOLDS, len(prompts))
    return fold_of_prompt[inverse]


def _features(texts: Sequence[str], groups: NDArray[np.intp]) -> FloatArray:
    """(texts, at most texts): coordinates with the inner products of the TF-IDF vectors, centred for each prompt."""
    counters = [CountVectorizer(analyzer=words), CountVectorizer(analyzer="char", ngram_range=(1, 3))]
    vectors = [TfidfTransformer(sublinear_tf=True).fit_transform(_count_terms(each, texts)) for each in counters]
    gram = sum((each @ each.T).toarray() for each in vectors)
    same_prompt = groups[:, None] == groups
    centring = np.eye(len(texts)) - same_prompt / same_prompt.sum(axis=0)
    values, basis = np.linalg.eigh(centring @ gram @ centring)
    positive = values > 1e-9 * max(values[-1], 1e-9)
    coordinates: FloatArray = basis[:, positive] * np.sqrt(values[positive])
    return coordinates


def _count_terms(counter: Any, texts: Iterable[str]) -> Any:
    """(texts, terms), sparse; one column of zeros for texts without any term."""
    texts = list(texts)
    try:
        return counter.fit_transform(texts)
    except ValueError:  # how scikit-learn reports an empty vocabulary
        return sparse.csr_matrix((len(texts), 1))


def _mean_pair_cosine(reference: Any, candidate: Any) -> float:
    """Of all pairs of one row of each; rows have length one, or are empty."""
    products = (reference @ candidate.T).toarray()
    empty = [np.asarray(each.getnnz(axis=1) == 0) for each in (reference, candidate)]
    products[np.outer(*empty)] = 1.0
    return float(products.mean())
