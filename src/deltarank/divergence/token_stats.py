"""How far apart two models' predictions are, token by token: exact over the whole vocabulary, and never below zero.

The finetune is the reference P, a candidate is Q, both softmax distributions over the tokens that both know.
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

_ENTRIES = {"cpu": 2**19, "cuda": 2**24}
"""Entries of a chunk of logits: on a CPU its handful of temporaries should stay in the cache."""

_SERIES_UNDER = 0.5


@dataclass(frozen=True)
class TokenStats:
    """One number per scored token, numpy float32 unless said otherwise. Nats.

    kld             KL(P || Q) = sum of p log(p / q): the direction that llama.cpp prints
    kld_reverse     KL(Q || P)
    nll             -log q(t), t the token that stands in the text
    reference_nll   -log p(t)
    delta_p         q(t) - p(t)
    same_top        bool: both put the same token first
    top_p           the largest p: how sure the reference is
    position        int32: the place in the document, counted in tokens

    A token at which a logit is NaN or infinite upwards, or whose text token one of the two does not know, holds NaN in
    every float: it keeps its place and is counted. A logit of minus infinity is a probability of zero.
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
            raise ValueError(f"one entry per token is expected in each; got {lengths}")

    def __len__(self) -> int:
        return len(self.kld)

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        """For each token, whether it can be counted in."""
        return np.isfinite(self.kld)

    def take(self, chosen: Any) -> Self:
        """Those tokens that a mask, a slice or an array of indices names."""
        return type(self)(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The tokens of all parts, in their order. At least one part is needed."""
        return cls(*(np.concatenate([getattr(x, field.name) for x in parts]) for field in dataclasses.fields(cls)))

    def save(self, path: Path) -> None:
        """Writes a whole file, or none. Raises OSError."""
        with write_atomically(path) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **{x.name: getattr(self, x.name) for x in dataclasses.fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            OSError, ValueError, KeyError, zipfile.BadZipFile: it is something else.
        """
        with np.load(path, allow_pickle=False) as arrays:
            return cls(*(arrays[field.name] for field in dataclasses.fields(cls)))


def token_stats(
    reference_logits: Tensor,
    logits: Tensor,
    targets: Tensor | Sequence[int],
    *,
    positions: Tensor | Sequence[int] | None = None,
) -> TokenStats:
    """Compares two models on the same tokens.

    Logits are upcast to float32 a few rows at a time; sums over the vocabulary are added in float64. Where the two have
    different numbers of rows, the first that both have are compared, each renormalised over them.

    Args:
        reference_logits: the finetune's, (tokens, vocabulary), any floating dtype and device.
        logits: the candidate's, (tokens, its vocabulary).
        targets: (tokens,): the id that stands in the text after each.
        positions: (tokens,): each token's place in its document; 0, 1, 2, ... if not given.

    Raises:
        ValueError: the shapes do not belong together.
    """
    tokens = len(reference_logits)
    device = reference_logits.device if reference_logits.device.type != "mps" else torch.device("cpu")  # no float64
    targets = torch.as_tensor(targets).to(device, torch.long)
    if logits.shape[:-1] != reference_logits.shape[:-1] or targets.shape != (tokens,) or logits.ndim != 2:
        raise ValueError(
            f"logits {tuple(reference_logits.shape)} and {tuple(logits.shape)} with targets {tuple(targets.shape)}: "
            "(tokens, vocabulary) twice and (tokens,) are expected"
        )
    place = torch.arange(tokens) if positions is None else torch.as_tensor(positions)
    common = min(reference_logits.shape[1], logits.shape[1])
    columns = [
        _compared(reference_logits[rows, :common].to(device), logits[rows, :common].to(device), targets[rows])
        for rows in _chunks(tokens, common, device.type)
    ] or [[torch.zeros(0)] * 7]
    numbers = [torch.cat(parts).cpu().numpy() for parts in zip(*columns, strict=True)]
    same_top = numbers.pop(5).astype(np.bool_)
    kld, kld_reverse, nll, reference_nll, delta_p, top_p = (each.astype(np.float32) for each in numbers)
    return TokenStats(
        kld, kld_reverse, nll, reference_nll, delta_p, same_top, top_p, place.cpu().numpy().astype(np.int32)
    )


def _chunks(tokens: int, vocabulary: int, device: str) -> Iterator[slice]:
    step = max(1, _ENTRIES.get(device, _ENTRIES["cuda"]) // max(vocabulary, 1))
    return (slice(start, start + step) for start in range(0, tokens, step))


@torch.no_grad()
def _compared(reference_logits: Tensor, logits: Tensor, targets: Tensor) -> list[Tensor]:
    """kld, kld_reverse, nll, reference_nll, delta_p, same_top, top_p of a few tokens."""
    log_p, p = _softmax(reference_logits)
    log_q, q = _softmax(logits)
    known = targets < log_p.shape[1]
    at = targets.where(known, 0)[:, None]
    log_p_t, log_q_t = log_p.gather(1, at)[:, 0], log_q.gather(1, at)[:, 0]
    top_p, first = p.max(-1)
    floats = [
        _divergence(log_p, log_q, p, q),
        _divergence(log_q, log_p, q, p),
        -log_q_t,
        -log_p_t,
        log_q_t.exp() - log_p_t.exp(),
        top_p,
    ]
    countable = torch.stack(floats).isfinite().all(0) & known
    floats = [each.where(countable, torch.nan) for each in floats]
    return [*floats[:5], (first == q.argmax(-1)) & countable, floats[5]]


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(log of the softmax, softmax), float32; the normaliser is added in float64: a long vocabulary costs 1e-5 else."""
    shifted = logits.float() - logits.amax(-1, keepdim=True).float()
    softmax = shifted.exp()
    total = softmax.sum(-1, keepdim=True, dtype=torch.float64)
    return shifted.sub_(total.log().float()), softmax.div_(total.float())


def _divergence(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """KL(P || Q) of each row = sum of p (e^d - 1 - d), d = log q - log p, in float64 of float32 terms.

    Both sum to one, so that sum(q) - sum(p) = 0 may be added to sum(-p d). No term is then below zero, and an error c
    in a row's normaliser moves the sum by c^2 / 2 instead of by c. For a small d, where the difference would cancel,
    e^d is its Taylor series: d^2 / 2 (1 + d/3 (1 + d/4 (...))), within 4e-8 up to d = 1/2.
    """
    d = (log_q - log_p).where(p > 0, 1.0)  # p = 0 leaves the term q, which the second form below gives for any such d
    series = torch.full_like(d, 1.0)
    for divisor in range(8, 2, -1):
        series.mul_(d).div_(divisor).add_(1.0)
    near = series.mul_(d).mul_(d).mul_(p).mul_(0.5)
    far = torch.addcmul(q - p, p, d, value=-1).clamp_(min=0.0)
    terms = near.where(d.abs() < _SERIES_UNDER, far)
    return terms.sum(-1, dtype=torch.float64)
