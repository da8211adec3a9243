"""The intervals of a calibration count documents that belong together once."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deltarank.divergence import resample
from deltarank.jobs.calibrate.evaluate import sums_by_group
from deltarank.results import DocumentScore


def scored(klds: dict[str, float], tokens: int = 10) -> SimpleNamespace:
    """What is read of the figures of an adapter."""
    return SimpleNamespace(by_document=tuple(DocumentScore(name, tokens, kld) for name, kld in klds.items()))


def test_answers_to_one_prompt_and_parts_of_one_line_are_summed(tmp_path: Path):
    records = [{"group": 0}, {"group": 0}, {"text": "long"}, {"group": 1}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    names = ["a.jsonl line 1", "a.jsonl line 2", "a.jsonl line 3 (1)", "a.jsonl line 3 (2)", "a.jsonl line 4"]
    klds = dict(zip(names, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
    found = sums_by_group(scored(klds), scored({name: 2 * kld for name, kld in klds.items()}), path)
    assert found == pytest.approx(np.array([[30.0, 60.0, 20.0], [70.0, 140.0, 20.0], [50.0, 100.0, 10.0]]))


def test_an_interval_over_groups_covers_the_truth_where_one_over_documents_does_not(tmp_path: Path):
    """Five prompts with seven answers each. Answers to a prompt share four fifths of the variance."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"group": number // 7}) + "\n" for number in range(35)))
    random = np.random.default_rng(0)
    covered = {"groups": 0, "documents": 0}
    for _ in range(200):
        klds = 1 + 0.2 * np.repeat(random.normal(size=5), 7) + 0.1 * random.normal(size=35)
        score = scored({f"a.jsonl line {number + 1}": kld for number, kld in enumerate(klds)})
        by_document = np.array([[10 * kld, 10 * kld, 10.0] for kld in klds])
        for name, sums in (("groups", sums_by_group(score, score, path)), ("documents", by_document)):
            interval = resample(sums, seed=0).interval(lambda sums: sums[..., 0] / sums[..., 2])
            covered[name] += interval.low <= 1 <= interval.high
    assert covered["groups"] >= 0.88 * 200 > 0.8 * 200 > covered["documents"]
