"""What the demo tells: a small table, and sentences that hold for the numbers at hand."""

from __future__ import annotations

import math

import pytest

from deltarank.demo import findings
from deltarank.results import Loss, MatrixResult, Outcome, Reference, Results, Verdict, VerdictKind

RANKS = (1, 2, 4, 8, 16, 32, 64)
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")


def run(name: str, lost: dict[str, float]) -> Results:
    """Each module loses this much energy at rank 8, twice that at rank 4 and under, half at 16 and so on."""
    matrices = tuple(
        MatrixResult(
            name=f"model.layers.0.{module}.weight",
            layer=0,
            module=module,
            shape=(64, 64),
            outcome=Outcome.MEASURED,
            dtype="bfloat16",
            max_rank=64,
            frobenius=1.0,
            base_frobenius=2.0,
            rounding_floor=0.0,
            losses=tuple(
                Loss.from_energy(r, lost=min(1.0, lost.get(module, 0.0) * 8 / r), total=1.0, entries=4096)
                for r in RANKS
            ),
        )
        for module in MODULES
    )
    return Results(
        base=Reference("lab/base"),
        finetune=Reference(f"lab/{name}"),
        settings={"ranks": list(RANKS)},
        matrices=matrices,
        skipped=(),
        verdict=Verdict(VerdictKind.FULL, (f"This is what is said of {name}.",)),
        tool_version="0.1.0",
        created="2026-11-24",
    )


ARTICLE = {"self_attn.q_proj": 0.1, "self_attn.k_proj": 0.1, "self_attn.v_proj": 0.1, "self_attn.o_proj": 0.3}
FULL = ARTICLE | {"mlp.up_proj": 0.5}


def told(full: dict[str, float] = FULL, *, width: int = 80) -> list[str]:
    return findings({"lora": run("lora", {}), "full": run("full", full), "merge": run("merge", FULL)}, width=width)


def test_the_table_sets_the_finetunes_side_by_side() -> None:
    lines = told()

    assert lines[2].split() == ["LoRA,", "merged", "full", "finetune", "merge", "of", "two"]
    mlp = next(line for line in lines if line.startswith("  MLP"))
    assert mlp.split() == ["MLP", "0", "0", "%", *["0.293", "50", "%"] * 2]
    assert all(len(line) <= 100 for line in lines)


def test_totals_add_energies() -> None:
    everything = next(line for line in told() if line.startswith("  all matrices"))

    assert "22 %" in everything  # (0.1 + 0.1 + 0.1 + 0.3 + 0.5) / 5


def test_the_sentences_state_the_numbers() -> None:
    text = " ".join(told())

    assert "rank 8 loses 0 % of its change" in text
    assert "MLP 50 %, o_proj 30 % and q, k, v 10 %" in text
    assert "This is what is said of merge." in text


def test_the_article_s_picture_is_claimed_only_where_it_shows() -> None:
    assert "the article's picture" in " ".join(told())
    assert "the article's picture" not in " ".join(told(FULL | {"self_attn.o_proj": 0.01}))


def test_a_rank_that_no_one_measured_is_not_invented() -> None:
    text = " ".join(told())

    assert "the LoRA takes rank 1, the full finetune more than rank 64" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_sentences_fit_the_terminal(width: int) -> None:
    lines = told(width=width)

    assert all(len(line) <= width for line in lines[lines.index("", 2) :])


def test_a_little_lost_is_never_nothing() -> None:
    little = dict.fromkeys(MODULES, 1e-9)

    assert "under 0.1 %" in " ".join(told(little))
    assert math.isclose(run("x", little).totals.whole.loss(8).energy_lost, 1e-9, rel_tol=1e-6)
