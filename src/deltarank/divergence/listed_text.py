"""Whether tokens were drawn from the probabilities listed beside them: bets on each token at the odds of its list.

The cells are the most probable tokens, and all others together. With p their listed probabilities, a bet that tokens
have the probabilities q multiplies the wealth by 1 - b + b q(x) / p(x), whose expectation is 1 if x is drawn from p.
Here q gives r^(1/T) to all others together, with r their listed probability, and what is left to the most probable
tokens in proportion to p^(1/T): with T < 1 the wealth grows if the tokens are more probable than those of the list,
with T > 1 if they are less probable. The mean wealth over b and T is an e-value (Ville 1939).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from deltarank.divergence.arrays import FloatArray
from deltarank.divergence.top_logprobs import LEAST_MASS, LogProbabilities

_TEMPERATURES = ((0.3, 0.5, 0.7, 0.85), (1.25, 1.5, 2.0, 4.0))
"""Of bets on more probable tokens, and of bets on less probable ones."""

_BETS = np.array([0.1, 0.3, 1.0])


def log_bets(listed: LogProbabilities, token: str, cells: int) -> FloatArray:
    """The logarithms of the factors of all bets on one token: (2, bets).

    Args:
        cells: how many tokens are cells of their own: fewer than are listed whichever token is drawn, because some
            servers list the drawn token beside the most probable ones, or in the place of the last.
    """
    top = sorted(listed, key=lambda each: -listed[each])[:cells]
    drawn = top.index(token) if token in top else len(top)
    log_p = np.array([listed[each] for each in top])
    rest = min(max(1 - math.fsum(np.exp(log_p)), LEAST_MASS), 1 - LEAST_MASS)
    log_p += math.log1p(-rest) - logsumexp(log_p)
    temperatures = np.array(_TEMPERATURES)
    log_rest = math.log(rest) / temperatures
    if drawn == len(top):
        log_ratio = log_rest - math.log(rest)
    else:
        tempered = log_p / temperatures[..., None]
        log_ratio = np.log1p(-np.exp(log_rest)) + tempered[..., drawn] - logsumexp(tempered, axis=-1) - log_p[drawn]
    with np.errstate(divide="ignore"):
        steps = np.logaddexp(np.log1p(-_BETS), np.log(_BETS) + log_ratio[..., None])
    return np.asarray(steps.reshape(2, -1))


def log_e_of_bets(steps: Sequence[FloatArray]) -> tuple[float, float]:
    """The largest log e-value so far that tokens are more probable than the lists say, and that they are less so."""
    wealth = logsumexp(np.cumsum(steps, axis=0), axis=-1) - math.log(steps[0].shape[-1])
    more, less = wealth.max(axis=0)
    return float(more), float(less)
