"""The test of sampled texts, recomputed from exchanges.jsonl alone by the formulas of docs/endpoints.md."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.utils import murmurhash3_32

from commands import RunCommand
from deltarank.results import EndpointResults
from fake_endpoint import FakeEndpoint, TinyModel, serving

DRAWS, PERMUTATIONS, BUCKETS = 4, 999, 2**16
TIE = 1e-9
"""Labels that are all exchanged give the same distance."""

Features = dict[tuple[int, int], float]


def answers(exchanges: Path) -> Iterator[list[str]]:
    """The texts to each prompt: four of A, then four of B."""
    texts: dict[int, dict[tuple[str, str], str]] = defaultdict(dict)
    for line in exchanges.read_text(encoding="utf-8").splitlines():
        exchange = json.loads(line)
        test, *_, number, draw = exchange["key"].rjust(4, ":").split(":")
        if test == "samples":
            texts[int(number)][exchange["side"], draw] = exchange["response"]["choices"][0]["text"]
    whole = (found for _, found in sorted(texts.items()) if len(found) == 2 * DRAWS)
    return ([found[where] for where in sorted(found)] for found in whole)


def features(text: str) -> Features:
    ended = text + "\0"
    characters = [ended[i : i + n] for n in range(1, 5) for i in range(len(ended) - n + 1)]
    found: Features = {}
    for kind, pieces in enumerate([characters, re.findall(r"\w+|[^\w\s]", ended)]):
        counts = Counter((kind, abs(murmurhash3_32(piece, seed=0)) % BUCKETS) for piece in pieces)
        found |= scaled({key: math.log1p(count) for key, count in counts.items()})
    return found


def scaled(vector: Features) -> Features:
    length = math.hypot(*vector.values())
    return {key: value / length for key, value in vector.items()}


def squared_mmds(rows: list[Features]) -> np.ndarray:
    """For each choice of the four texts that are called A's; the true one is the first."""
    kernel = [[sum(value * other.get(key, 0) for key, value in row.items()) for other in rows] for row in rows]

    def within(chosen: set[int]) -> float:
        return float(np.mean([kernel[i][j] for i, j in permutations(chosen, 2)]))

    everything = set(range(2 * DRAWS))
    choices = [(set(a), everything - set(a)) for a in combinations(range(2 * DRAWS), DRAWS)]
    return np.array([within(a) + within(b) - 2 * np.mean([kernel[i][j] for i in a for j in b]) for a, b in choices])


def share_as_far(distances: list[np.ndarray]) -> float:
    """Of all ways to give out labels within four prompts, those whose mean distance is at least the true one."""
    true = sum(each[0] for each in distances) - TIE
    one, two, three, four = distances
    first, second = np.add.outer(one, two).ravel(), np.sort(np.add.outer(three, four).ravel())
    return float(np.mean(len(second) - np.searchsorted(second, true - first)) / len(second))


def test_the_permutation_p_is_that_of_all_labellings(command: RunCommand, tmp_path: Path) -> None:
    """Of those it draws 999: as many reach the true distance as the share among all of them makes likely."""
    noisy = {"top_logprobs": 0, "temperature_ignored": True}
    with serving(FakeEndpoint(**noisy), FakeEndpoint(model=TinyModel(change=1.0), **noisy)) as (a, b):
        command("endpoints", a.reference, b.reference, "-o", tmp_path, "--max-requests", 74, "--no-report")

    (test,) = EndpointResults.load(tmp_path).endpoints.tests
    seen: Counter[tuple[int, int]] = Counter()
    distances = []
    for number, texts in enumerate(answers(tmp_path / "exchanges.jsonl"), 1):
        rows = [features(text) for text in texts]
        seen.update(key for row in rows for key in row)
        rarity = {key: 1 + math.log((1 + 2 * DRAWS * number) / (1 + containing)) for key, containing in seen.items()}
        distances.append(squared_mmds([scaled({key: x * rarity[key] for key, x in row.items()}) for row in rows]))
    share = share_as_far(distances)

    assert test.n == len(distances) == 4
    assert test.statistic == pytest.approx(np.mean([each[0] for each in distances]), abs=1e-12)
    assert test.permutation_p is not None
    reached = round(test.permutation_p * (1 + PERMUTATIONS)) - 1
    assert test.permutation_p == (1 + reached) / (1 + PERMUTATIONS)
    assert min(binom.cdf(reached, PERMUTATIONS, share), binom.sf(reached - 1, PERMUTATIONS, share)) > 1e-9
