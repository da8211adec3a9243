"""Divergence of two models' next-token predictions, token by token: exact over the whole vocabulary, never negative.

The finetune is the reference P, a candidate is Q: softmax distributions over the tokens of both vocabularies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltarank.system import write_atomically

_LOGITS_PER_CHUNK = {"cpu": 2**19, "cuda": 2**24}
"""By device. On a CPU a chunk's handful of temporaries should stay in the cache."""

_LARGEST_EXPONENT = 4.0
"""The largest d = log q - log p for which q is computed as p e^d everywhere: its error is d times that of float32."""

_NEAR = 0.5
"""Where a larger d occurs, only a |d| below this is used so, and q and p themselves are subtracted for the others."""


@dataclass(frozen=True)
class TokenStats:
    """One entry per scored token: arrays of shape (tokens,), float32 unless noted. Logarithms are natural (nats).

    kld             KL(P || Q) = sum of p log(p / q), the direction that llama.cpp prints
    kld_reverse     KL(Q || P)
    nll             -log q(t), where t is the token in the text
    reference_nll   -log p(t)
    delta_p         q(t) - p(t)
    same_top        bool: P and Q have the same most likely token
    top_p           the largest p, the reference's confidence
    position        int32: index of the token in its document

    Every float of a token is NaN if one of its logits is NaN or +inf, or if t is missing from one vocabulary. A logit
    of -inf means a probability of zero.
    """

    kld: NDArray[np.float32]
    kld_reverse: NDArray[np.float32]
    nll: NDArray[np.float32]
    reference_nll: NDArray[np.float32]
    delta_p: NDArray[np.float32]
    same_top: NDArray[np.bool_]
    top_p: NDArray[np.float32]
    position: NDArray[np.int32]

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in dataclasses.fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected arrays of one length; got {lengths}")

    def __len__(self) -> int:
        return len(self.kld)

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        """For each token, whether its statistics are finite."""
        return np.isfinite(self.kld)

    def take(self, tokens: Any) -> Self:
        """The tokens that a mask, a slice or an array of indices selects."""
        return type(self)(*(getattr(self, field.name)[tokens] for field in dataclasses.fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The tokens of all parts, in order. At least one part is required."""
        return cls(*(np.concatenate([getattr(x, field.name) for x in parts]) for field in dataclasses.fields(cls)))

    def save(self, path: Path) -> None:
        """Writes a whole .npz file, or none. Raises OSError."""
        with write_atomically(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **{x.name: getattr(self, x.name) for x in dataclasses.fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file that `save` wrote.

        Raises:
            OSError, ValueError, KeyError, zipfile.BadZipFile: the file is missing or is another kind of file.
        """
        with np.load(path, allow_pickle=False) as arrays:
            return cls(*(arrays[field.name] for field in dataclasses.fields(cls)))


def compare_logits(
    reference_logits: Tensor,
    logits: Tensor,
    targets: Tensor | Sequence[int],
    *,
    positions: Tensor | Sequence[int] | None = None,
) -> TokenStats:
    """Compares two models' predictions of the same tokens.

    Logits are upcast to float32 a few tokens at a time; sums over the vocabulary are accumulated in float64. If one
    vocabulary is longer, its additional tokens are left out and the distribution is renormalised over the rest.

    Args:
        reference_logits: the finetune's logits, (tokens, vocabulary), of any floating dtype and device.
        logits: the candidate's logits, (tokens, its vocabulary).
        targets: (tokens,), the id of the token in the text that each row predicts.
        positions: (tokens,), each token's index in its document; 0, 1, 2, ... by default.

    Raises:
        ValueError: the shapes do not match.
    """
    tokens = len(reference_logits)
    device = reference_logits.device if reference_logits.device.type != "mps" else torch.device("cpu")  # no float64
    targets = torch.as_tensor(targets).to(device, torch.long)
    if logits.shape[:-1] != reference_logits.shape[:-1] or targets.shape != (tokens,) or logits.ndim != 2:
        raise ValueError(
            f"got logits of shapes {tuple(reference_logits.shape)} and {tuple(logits.shape)} and targets of shape "
            f"{tuple(targets.shape)}; expected (tokens, vocabulary) twice and (tokens,)"
        )
    places = torch.arange(tokens) if positions is None else torch.as_tensor(positions)
    shared = min(reference_logits.shape[1], logits.shape[1])
    columns = [
        _compare(reference_logits[rows, :shared].to(device), logits[rows, :shared].to(device), targets[rows])
        for rows in _chunks(tokens, shared, device.type)
    ] or [[torch.zeros(0)] * 7]
    arrays = [torch.cat(parts).cpu().numpy() for parts in zip(*columns, strict=True)]
    same_top = arrays.pop(5).astype(np.bool_)
    kld, kld_reverse, nll, reference_nll, delta_p, top_p = (each.astype(np.float32) for each in arrays)
    position = places.cpu().numpy().astype(np.int32)
    return TokenStats(kld, kld_reverse, nll, reference_nll, delta_p, same_top, top_p, position)


def _chunks(tokens: int, vocabulary: int, device: str) -> Iterator[slice]:
    step = max(1, _LOGITS_PER_CHUNK.get(device, _LOGITS_PER_CHUNK["cuda"]) // max(vocabulary, 1))
    return (slice(start, start + step) for start in range(0, tokens, step))


@dataclass(frozen=True)
class _Softmax:
    """The softmax of some rows of logits: weights / total, where weights = exp(logits - top).

    logits, weights  (tokens, vocabulary) in float32
    top              (tokens, 1), the largest logit
    total            (tokens, 1) in float64; summed in float32 it may be off by 1e-5
    """

    logits: Tensor
    top: Tensor
    weights: Tensor
    total: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Self:
        logits = logits.float()
        top = logits.amax(-1, keepdim=True)
        weights = (logits - top).exp_()
        return cls(logits, top, weights, weights.sum(-1, keepdim=True, dtype=torch.float64))

    @property
    def log_normaliser(self) -> Tensor:
        """(tokens, 1), float64: what is subtracted from the logits to make them logarithms of probabilities."""
        return self.top.double() + self.total.log()

    def log_probability(self, index: Tensor) -> Tensor:
        """(tokens,): of one token in each row, of `index` (tokens, 1)."""
        return (self.logits.gather(1, index) - self.log_normaliser)[:, 0].float()

    @property
    def top_probability(self) -> Tensor:
        return self.total.reciprocal()[:, 0].float()


@torch.no_grad()
def _compare(reference_logits: Tensor, logits: Tensor, targets: Tensor) -> list[Tensor]:
    """The columns kld, kld_reverse, nll, reference_nll, delta_p, same_top and top_p of a few tokens."""
    p, q = _Softmax.of(reference_logits), _Softmax.of(logits)
    in_vocabulary = targets < p.logits.shape[1]
    index = targets.where(in_vocabulary, 0)[:, None]
    log_p_t, log_q_t = p.log_probability(index), q.log_probability(index)
    floats = [*_divergences(p, q), -log_q_t, -log_p_t, log_q_t.exp() - log_p_t.exp(), p.top_probability]
    is_finite = torch.stack(floats).isfinite().all(0) & in_vocabulary
    floats = [each.where(is_finite, torch.nan) for each in floats]
    q_at_top = q.logits.gather(1, p.logits.argmax(-1, keepdim=True))
    return [*floats[:5], (q_at_top == q.top)[:, 0] & is_finite, floats[5]]


def _divergences(p: _Softmax, q: _Softmax) -> tuple[Tensor, Tensor]:
    """KL(P || Q) and KL(Q || P) of each row, with d = log q - log p: float32 terms, summed in float64.

    KL(P || Q) = sum of (q - p) - p d, and KL(Q || P) = sum of q d - (q - p). P and Q both sum to one, so their
    difference, whose sum is zero, can be added. Then an error c in a row's normaliser changes the sum by c^2 / 2, not
    by c. Where d is small, q - p = p (e^d - 1), which `expm1` computes to the last digits; and the difference of the
    logits is rounded only once, and exactly zero where they are equal.
    """
    d = _log_ratio(p, q)
    q_weights = q.weights * (p.total / q.total).float()  # on the scale of P's weights
    step = d.expm1().mul_(p.weights)
    if d.amax() <= _LARGEST_EXPONENT:
        there, back = torch.addcmul(step, p.weights, d, value=-1), q_weights.mul_(d).sub_(step)
    else:  # or d is NaN: both logits are -inf, which counts for nothing, or one is NaN, and so are its row's weights
        step = step.where(d.abs() < _NEAR, q_weights - p.weights)
        there, back = step - _without_nan(p.weights * d), _without_nan(q_weights * d) - step
    total = p.total[:, 0]
    one_way, other_way = (each.sum(-1, dtype=torch.float64) / total for each in (there, back))
    return one_way.clamp_(min=0.0), other_way.clamp_(min=0.0)


def _log_ratio(p: _Softmax, q: _Softmax) -> Tensor:
    """log q - log p. The normalisers' difference is added in two parts: rounded once, it would move a whole row."""
    moved = p.log_normaliser - q.log_normaliser
    rounded = moved.float()
    return (q.logits - p.logits).add_(rounded).add_((moved - rounded).float())


def _without_nan(values: Tensor) -> Tensor:
    """Zero times infinity, of a token that has no probability, is zero."""
    return values.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
