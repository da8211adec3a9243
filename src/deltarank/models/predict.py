"""A model's predictions at the scored tokens: hidden states in, float32 logits out, a piece at a time.

What enters the output head is a small vector; the logits that leave it are as many as the vocabulary is long. So the
former is kept, and the head is applied again where logits are compared: nothing as large as the logits of a document
is ever stored, and they are exact in float32 where a model would round them to its own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from deltarank.errors import JobError

LOGITS_AT_ONCE = 1 << 25
"""Entries of the logits that exist at one time, each side: 128 MB in float32."""

_WEIGHT_ROWS = 1 << 14
_PAD = 0


@dataclass(frozen=True)
class Window:
    """Tokens that a model reads at once, and which of them are predicted from those before.

    rows             positions of `ids` whose predictions are compared: that before each scored token
    """

    ids: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def of(cls, ids: Sequence[int], scored: Sequence[bool]) -> Window:
        return cls(tuple(ids), tuple(i - 1 for i in range(1, len(ids)) if scored[i]))

    @property
    def targets(self) -> tuple[int, ...]:
        """The token that stands after each row."""
        return tuple(self.ids[row + 1] for row in self.rows)


@dataclass(frozen=True)
class Head:
    """The output head: logits = hidden weight' + bias, in float32. None of both: what is kept are logits already."""

    weight: Tensor | None
    bias: Tensor | None = None

    def logits(self, kept: Tensor) -> Tensor:
        """(tokens, vocabulary) in float32, of (tokens, hidden). The weight is upcast some rows at a time."""
        if self.weight is None:
            return kept.float()
        hidden = kept.to(self.weight.device).float()
        parts = [linear(hidden, rows.float()) for rows in torch.split(self.weight, _WEIGHT_ROWS)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return out if self.bias is None else out.add_(self.bias.float())

    def to(self, device: torch.device) -> Head:
        return Head(*(None if each is None else each.to(device) for each in (self.weight, self.bias)))

    @property
    def step(self) -> int:
        """How many tokens' logits may exist at one time."""
        return max(1, LOGITS_AT_ONCE // len(self.weight)) if self.weight is not None else 1 << 10


class Predictor:
    """A model that gives what is kept of its predictions: hidden states where its head is all that follows them.

    Whether it is, is found out on the first batch: the model's own logits must be the head's, to rounding.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self._device = model, device
        self._module = model.get_output_embeddings()
        self._checked: bool | None = None

    def head(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Head:
        """Call it once a batch was predicted. `weight`, `bias`: where the model does not hold its head's."""
        if not self._checked:
            return Head(None)
        own = (self._module.weight, getattr(self._module, "bias", None)) if weight is None else (weight, bias)
        return Head(*(None if each is None else each.detach() for each in own))

    @torch.inference_mode()
    def kept(self, windows: Sequence[Window]) -> list[Tensor]:
        """For each window, (its rows, hidden); or (its rows, vocabulary) where the head is not all.

        Raises:
            JobError: (slug "out-of-memory") the batch does not fit.
        """
        with translate_out_of_memory(len(windows), self._device):
            if self._checked is None:
                self._checked = self._is_plain(windows[:1])
            kept = self._hidden(windows) if self._checked else self._logits(windows)
            return [
                each[torch.tensor(window.rows, device=each.device)] for each, window in zip(kept, windows, strict=True)
            ]

    def _is_plain(self, windows: Sequence[Window]) -> bool:
        """Whether logits are the head of what enters it, on a window; softcaps are seen on large logits only."""
        if self._module is None or not hasattr(self._module, "weight") or _caps(self._model.config):
            return False
        seen: list[Tensor] = []
        with _hooked(self._module, lambda _, given: seen.append(given[0])):
            logits = self._logits(windows)
        return len(seen) == 1 and _agree(self._module(seen[0]), logits)

    def _hidden(self, windows: Sequence[Window]) -> Tensor:
        """What enters the head, which is then given one position only."""
        seen: list[Tensor] = []

        def keep(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(given[0])
            return (given[0][:, -1:], *given[1:])

        with _hooked(self._module, keep):
            self._call(windows)
        return seen[0]

    def _logits(self, windows: Sequence[Window]) -> Tensor:
        logits: Tensor = self._call(windows).logits
        return logits.float()

    def _call(self, windows: Sequence[Window]) -> Any:
        longest = max(len(window.ids) for window in windows)
        ids = torch.full((len(windows), longest), _PAD)
        mask = torch.zeros_like(ids)
        for row, window in enumerate(windows):
            ids[row, : len(window.ids)] = torch.tensor(window.ids)
            mask[row, : len(window.ids)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        return self._model(input_ids=ids, attention_mask=mask, use_cache=False)


def _caps(config: Any) -> bool:
    return bool(getattr(config.get_text_config(), "final_logit_softcapping", None))


def _agree(made: Tensor, logits: Tensor) -> bool:
    """To the rounding of the head's dtype; a NaN agrees with a NaN."""
    if made.shape != logits.shape:
        return False
    most = torch.finfo(made.dtype).eps * float(logits.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(made.to(logits), logits, rtol=0, atol=most, equal_nan=True)


@contextmanager
def _hooked(module: Any, hook: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def translate_out_of_memory(batch: int, device: torch.device) -> Iterator[None]:
    """A want of memory, in our words."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        smaller = f"--batch {batch // 2}" if batch > 1 else "shorter texts"
        raise JobError(
            f"a batch of {batch} does not fit into the memory of {device}.",
            cure=f"Use {smaller}, or --dtype bfloat16. What was finished is kept: the same command goes on.",
            slug="out-of-memory",
        ) from error


def batches(windows: Sequence[Window], *, size: int | None, tokens: int) -> list[list[int]]:
    """Numbers of the windows that go through together, long ones with long ones; each once, always the same way.

    Args:
        size: so many together; None: as many as make `tokens`, padding counted.
    """
    order = sorted(range(len(windows)), key=lambda i: (-len(windows[i].ids), i))
    out: list[list[int]] = []
    for i in order:
        if out and _fits(out[-1], windows, size, tokens):
            out[-1].append(i)
        else:
            out.append([i])
    return out


def _fits(batch: Sequence[int], windows: Sequence[Window], size: int | None, tokens: int) -> bool:
    if size is not None:
        return len(batch) < size
    return (len(batch) + 1) * len(windows[batch[0]].ids) <= tokens
