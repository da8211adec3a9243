"""Bets on drawn tokens, at the odds of the lists that come with them."""

from __future__ import annotations

import numpy as np
import pytest

from deltarank.divergence import log_bets, log_e_of_bets

CELLS = 9


def listed(p: np.ndarray, drawn: int, *, replaces_last: bool) -> dict[str, float]:
    """The ten most probable tokens, and the drawn one beside them or in the place of the last."""
    top = list(np.argsort(-p)[:10])
    if drawn not in top:
        top = [*(top[:-1] if replaces_last else top), drawn]
    return {str(each): float(np.log(p[each])) for each in top}


@pytest.mark.parametrize("replaces_last", [False, True])
def test_each_bet_is_fair(replaces_last: bool) -> None:
    p = np.random.default_rng(0).dirichlet(np.full(40, 0.5))
    factors = [np.exp(log_bets(listed(p, i, replaces_last=replaces_last), str(i), CELLS)) for i in range(len(p))]

    assert np.tensordot(p, factors, 1) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, (False, False)), (0.5, (True, False)), (2.0, (False, True))]
)
def test_draws_at_another_temperature_are_found_and_others_are_not(
    temperature: float, expected: tuple[bool, bool]
) -> None:
    rng = np.random.default_rng(1)
    steps = []
    for _ in range(100):
        z = rng.normal(0, 2, 40)
        p, q = (np.exp(z / t) / np.exp(z / t).sum() for t in (1.0, temperature))
        drawn = int(rng.choice(40, p=q))
        steps.append(log_bets(listed(p, drawn, replaces_last=False), str(drawn), CELLS))

    assert tuple(each >= np.log(100) for each in log_e_of_bets(steps)) == expected
