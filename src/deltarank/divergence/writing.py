"""What models write, beside what the finetune writes: likeness, richness, length, and whether it can be told at all."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from deltarank.divergence.classifier import Floats, held_out_scores
from deltarank.results import TwoSampleTest, Writing

PERMUTATIONS = 999
FOLDS = 5
STRENGTH = 10.0
_FEWEST_LABELLINGS = 20

_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+")


@dataclass(frozen=True)
class Answer:
    """What a model wrote to a prompt.

    prompt    the prompt's index
    ids       the answer's tokens, with the one that ended it, if it ended
    text      those tokens, without special ones
    """

    prompt: int
    sample: int
    ids: tuple[int, ...]
    text: str
    prompt_ids: tuple[int, ...]


def writing_of(reference: Sequence[Answer], candidate: Sequence[Answer], *, seed: int) -> Writing:
    """A candidate's answers beside the reference's to the same prompts.

    Raises:
        ValueError: the two did not answer the same prompts equally often.
    """
    prompts = [each.prompt for each in reference]
    if prompts != [each.prompt for each in candidate] or not prompts:
        raise ValueError("the two did not answer the same prompts, in the same order, equally often")
    theirs, ours = ([each.text for each in answers] for answers in (reference, candidate))
    found = [words(text) for text in ours]
    total = sum(map(len, found))
    return Writing(
        prompts=len(set(prompts)),
        samples=len(prompts) // len(set(prompts)),
        cosine=cosine(theirs, ours, prompts),
        distinct_words=len(set().union(*found)) / total if total else 0.0,
        words=total / len(found),
        test=two_sample_test(theirs, ours, prompts, seed=seed),
    )


def words(text: str) -> list[str]:
    """In lower case, without punctuation. Of scripts without spaces, each sign is a word."""
    return _WORD.findall(text.lower())


def cosine(reference: Sequence[str], candidate: Sequence[str], prompts: Sequence[int]) -> float:
    """The mean, over prompts, of the mean cosine between a text of each, in TF-IDF of words.

    A word's weight is 1 + ln((1 + n) / (1 + texts that hold it)), counted over the n texts of the reference, so that
    all candidates are measured in one space. Two texts without a word are alike.
    """
    counter = CountVectorizer(analyzer=words)
    counts = _counted(counter, [*reference, *candidate])
    vectors = TfidfTransformer().fit(counts[: len(reference)]).transform(counts)
    theirs, ours = vectors[: len(reference)], vectors[len(reference) :]
    at = np.asarray(prompts)
    return float(np.mean([_mean_cosine(theirs[at == each], ours[at == each]) for each in np.unique(at)]))


def two_sample_test(
    reference: Sequence[str],
    candidate: Sequence[str],
    prompts: Sequence[int],
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
) -> TwoSampleTest | None:
    """Whether a classifier tells the two kinds of text apart (C2ST, Lopez-Paz and Oquab 2017).

    Features are TF-IDF of words and of runs of up to three characters, less the mean of all texts to the prompt, so
    that the subject of a prompt says nothing. A logistic regression is fitted to four fifths of the prompts and asked
    of the rest. The statistic is its mean log odds for the right answer; labels are permuted within each prompt, where
    texts of equal models may change places, and p = (1 + b) / (1 + B), b the permutations that reach as much. So
    p <= 0.05 happens to equal models at most one time in twenty, whatever the texts are.

    None where there are too few texts for a p of 0.05.
    """
    groups = np.tile(np.asarray(prompts), 2)
    if len(np.unique(groups)) < 2 or _labellings(prompts) < _FEWEST_LABELLINGS:
        return None
    random = np.random.default_rng(seed)
    labels = _labels(groups, permutations, random)
    folds = _folds(groups, random)
    scores = held_out_scores(_features([*reference, *candidate], groups), labels, folds, strength=STRENGTH)
    right = np.where(labels == 1, scores, -scores)
    means = right.mean(axis=0)
    reached = int((means[1:] >= means[0] - 1e-9 * np.abs(means).max()).sum())
    accuracy = float((right[:, 0] > 0).mean() + (right[:, 0] == 0).mean() / 2)
    return TwoSampleTest(accuracy, (1 + reached) / (1 + permutations), permutations)


def _labellings(prompts: Sequence[int]) -> float:
    """How many ways there are to label the texts."""
    _, samples = np.unique(np.asarray(prompts), return_counts=True)
    return math.exp(min(math.fsum(math.log(math.comb(2 * int(n), int(n))) for n in samples), 700.0))


def _labels(groups: NDArray[np.intp], permutations: int, random: np.random.Generator) -> Floats:
    """(texts, 1 + permutations): the truth first, 1 for the candidate's; then permuted within each prompt."""
    truth = np.repeat([0.0, 1.0], len(groups) // 2)
    labels = np.tile(truth[:, None], (1, 1 + permutations))
    for each in np.unique(groups):
        rows = np.flatnonzero(groups == each)
        order = random.random((len(rows), permutations)).argsort(axis=0)
        labels[rows, 1:] = truth[rows][order]
    return labels


def _folds(groups: NDArray[np.intp], random: np.random.Generator) -> NDArray[np.intp]:
    """Whole prompts go to a fold, as evenly as they will."""
    prompts, which = np.unique(groups, return_inverse=True)
    fold: NDArray[np.intp] = random.permutation(len(prompts)) % min(FOLDS, len(prompts))
    return fold[which]


def _features(texts: Sequence[str], groups: NDArray[np.intp]) -> Floats:
    """(texts, at most texts): coordinates in which distances are those of the centred TF-IDF vectors."""
    counters = [CountVectorizer(analyzer=words), CountVectorizer(analyzer="char", ngram_range=(1, 3))]
    vectors = [TfidfTransformer(sublinear_tf=True).fit_transform(_counted(each, texts)) for each in counters]
    gram = sum((each @ each.T).toarray() for each in vectors)
    alike = groups[:, None] == groups
    centre = np.eye(len(texts)) - alike / alike.sum(axis=0)
    values, basis = np.linalg.eigh(centre @ gram @ centre)
    kept = values > 1e-9 * max(values[-1], 1e-9)
    coordinates: Floats = basis[:, kept] * np.sqrt(values[kept])
    return coordinates


def _counted(counter: Any, texts: Iterable[str]) -> Any:
    """(texts, terms); of texts without a single term, one column of zeros."""
    texts = list(texts)
    try:
        return counter.fit_transform(texts)
    except ValueError:  # sklearn's word for an empty vocabulary
        return sparse.csr_matrix((len(texts), 1))


def _mean_cosine(theirs: Any, ours: Any) -> float:
    products = (theirs @ ours.T).toarray()
    empty = [np.asarray(each.getnnz(axis=1) == 0) for each in (theirs, ours)]
    products[np.outer(*empty)] = 1.0
    return float(products.mean())
