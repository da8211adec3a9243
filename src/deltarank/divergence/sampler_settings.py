"""What a model's sampler makes of its predictions: the probability of a token under each of some common settings.

A host may lower the temperature or cut off improbable tokens without saying so. Each setting here is a distribution
that adds up to 1, so likelihoods under different settings can be compared, and mixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHOWN_TOKENS = 1024
"""Of the most probable ones, the probabilities are added one by one; each other token has less than 0.1 %."""

_LEAK = 1e-3
"""The share of the untruncated distribution in a truncated one. On other kernels, a token at the edge is kept or not;
without this share, one such token would exclude the setting for ever."""


@dataclass(frozen=True)
class SamplerSetting:
    """Temperature first; the others, one after another, on the probabilities at temperature 1. 0 and 1 switch off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def is_truncated(self) -> bool:
        return bool(self.top_k or self.min_p or self.top_p < 1)

    @property
    def is_plain(self) -> bool:
        """Whether it samples from the model's own probabilities."""
        return not self.is_truncated and self.temperature == 1

    def __str__(self) -> str:
        parts = [f"temperature {self.temperature:g}"] if self.temperature != 1 else []
        parts += [f"top-k {self.top_k}"] if self.top_k else []
        parts += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"min-p {self.min_p:g}"] if self.min_p else []
        return " with ".join(parts) or "temperature 1, nothing cut off"


TEMPERATURES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)

SETTINGS: tuple[SamplerSetting, ...] = (
    *(SamplerSetting(each) for each in TEMPERATURES),
    *(SamplerSetting(top_p=each) for each in (0.5, 0.8, 0.9, 0.95, 0.99)),
    *(SamplerSetting(min_p=each) for each in (0.02, 0.05, 0.1)),
    *(SamplerSetting(top_k=each) for each in (20, 40, 64)),
    SamplerSetting(top_k=40, min_p=0.05),
    SamplerSetting(top_k=40, top_p=0.95, min_p=0.05),
)
"""The last two are llama.cpp's defaults, without and with its top-p."""

PLAIN = SETTINGS.index(SamplerSetting())

LOG_PRIOR: NDArray[np.float64] = np.full(len(SETTINGS), math.log(0.5 / (len(SETTINGS) - 1)))
"""Half on what was asked for, the rest spread evenly."""
LOG_PRIOR[PLAIN] = math.log(0.5)


def log_probabilities_by_setting(logits: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """The log-probability of each token under each of `SETTINGS`: (tokens, settings), in nats.

    Args:
        logits: (tokens, vocabulary), at temperature 1.
        targets: the index of each token, (tokens,).
    """
    z = logits.float() - logits.float().amax(-1, keepdim=True)
    own = z.gather(-1, targets.to(z.device)[:, None])
    by_temperature = [_tempered(z, own, each.temperature) for each in SETTINGS if not each.is_truncated]
    plain = by_temperature[TEMPERATURES.index(1.0)]
    truncated = _Truncation(z, own, plain)
    by_truncation = [truncated.log_probabilities(each) for each in SETTINGS if each.is_truncated]
    return torch.stack([*by_temperature, *by_truncation], -1).cpu().numpy()


def _tempered(z: Tensor, own: Tensor, temperature: float) -> Tensor:
    """In float64, (tokens,)."""
    total = torch.exp(z / temperature).sum(-1, dtype=torch.float64)
    return own[:, 0].double() / temperature - total.log()


class _Truncation:
    """Which tokens a setting keeps, and how much probability they have together."""

    def __init__(self, z: Tensor, own: Tensor, plain: Tensor) -> None:
        self._plain = plain
        p = torch.exp(z.double() - (own[:, 0].double() - plain)[:, None])
        is_above = z > own
        self._rank = is_above.sum(-1)
        self._mass_above = (p * is_above).sum(-1)
        self._p = p
        self._top = p.topk(min(_SHOWN_TOKENS, p.shape[-1]), -1).values
        self._own = plain.exp()

    def log_probabilities(self, setting: SamplerSetting) -> Tensor:
        """(tokens,)."""
        kept, is_kept = self._kept_mass(setting), self._is_kept(setting)
        inside = torch.where(is_kept, self._plain - kept.log(), torch.full_like(self._plain, -math.inf))
        return torch.logaddexp(inside + math.log1p(-_LEAK), self._plain + math.log(_LEAK))

    def _is_kept(self, setting: SamplerSetting) -> Tensor:
        kept = self._mass_above < setting.top_p
        if setting.top_k:
            kept &= self._rank < setting.top_k
        return kept & (self._own >= setting.min_p * self._top[:, 0])

    def _kept_mass(self, setting: SamplerSetting) -> Tensor:
        """Of the most probable tokens; where all of those are kept, of the others what top-p lets in."""
        if not setting.top_k and setting.top_p == 1:
            return (self._p * (self._p >= setting.min_p * self._top[:, :1])).sum(-1)
        before = self._top.cumsum(-1) - self._top
        kept = (before < setting.top_p) & (self._top >= setting.min_p * self._top[:, :1])
        if setting.top_k:
            kept[:, setting.top_k :] = False
        mass = (self._top * kept).sum(-1)
        return torch.where(kept[:, -1], mass.clamp(min=setting.top_p), mass).clamp(max=1.0)
