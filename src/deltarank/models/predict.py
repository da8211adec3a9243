"""A model's predictions at the scored tokens: hidden states from the model, float32 logits from its output head.

The vector that enters the output head is small; the logits that leave it are as many as the vocabulary is long. So the
inputs of the head are stored, and the head is applied again when logits are compared. Nothing as large as a document's
logits is ever stored, and they are exact in float32, where the model would round them to its own dtype.
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
from deltarank.models.skeleton import AnyModel, softcaps_logits

LOGITS_PER_CHUNK = 1 << 25
"""The most logits of one model that exist at a time: 128 MB in float32."""

_WEIGHT_ROWS_PER_CHUNK = 1 << 14
_TOKENS_WITHOUT_HEAD = 1 << 10
_PADDING_ID = 0


@dataclass(frozen=True)
class Window:
    """Tokens that a model reads at once, and the positions whose predictions are compared.

    rows             indices into `ids`: the position before each scored token, at which it is predicted
    """

    ids: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def from_mask(cls, ids: Sequence[int], scored: Sequence[bool]) -> Window:
        return cls(tuple(ids), tuple(i - 1 for i in range(1, len(ids)) if scored[i]))

    @property
    def targets(self) -> tuple[int, ...]:
        """The token after each row."""
        return tuple(self.ids[row + 1] for row in self.rows)


@dataclass(frozen=True)
class Head:
    """An output head: logits = inputs weight' + bias, in float32. Without a weight its inputs are logits already."""

    weight: Tensor | None
    bias: Tensor | None = None

    def logits(self, inputs: Tensor) -> Tensor:
        """(tokens, hidden) to (tokens, vocabulary) in float32. The weight is upcast some rows at a time, if at all."""
        if self.weight is None:
            return inputs.float()
        hidden = inputs.to(self.weight.device).float()
        parts = [linear(hidden, each.float()) for each in self._weight_chunks(len(self.weight))]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return logits if self.bias is None else logits.add_(self.bias.float())

    def sum_rows(self, factors: Tensor) -> Tensor:
        """sum f_j W_j over the rows W_j of the weight: (tokens, hidden). Without a weight it is `factors`.

        Args:
            factors: (tokens, n) in float32, for the first n rows.
        """
        if self.weight is None:
            return factors
        chunks = self._weight_chunks(factors.shape[-1])
        columns = torch.split(factors, [len(chunk) for chunk in chunks], -1)
        total, *others = (part @ chunk.float() for part, chunk in zip(columns, chunks, strict=True))
        for each in others:
            total += each
        return total

    def _weight_chunks(self, rows: int) -> Sequence[Tensor]:
        """The first rows of the weight: some at a time if they have to be upcast."""
        assert self.weight is not None
        at_once = rows if self.weight.dtype == torch.float32 else _WEIGHT_ROWS_PER_CHUNK
        return torch.split(self.weight[:rows], max(at_once, 1))

    def to(self, device: torch.device) -> Head:
        return Head(*(None if each is None else each.to(device) for each in (self.weight, self.bias)))

    @property
    def tokens_per_chunk(self) -> int:
        """How many tokens' logits may exist at a time."""
        return max(1, LOGITS_PER_CHUNK // len(self.weight)) if self.weight is not None else _TOKENS_WITHOUT_HEAD


class Predictor:
    """Runs a model and returns the inputs of its output head; its logits where more follows the head, as a softcap.

    Which of the two it is, is found out on the first batch: the head's outputs must be the model's logits, to rounding.

    Args:
        head: the output head, if the model does not hold its weights.
        head_may_be_last: False where the head's weights alone do not give the logits, as under a LoRA.
    """

    def __init__(
        self, model: AnyModel, device: torch.device, head: Head | None = None, *, head_may_be_last: bool = True
    ) -> None:
        self._model, self._device, self._given_head = model, device, head
        self._module = model.get_output_embeddings()
        self._head_is_last: bool | None = None if head_may_be_last else False

    @property
    def head(self) -> Head:
        """What turns the results of `head_inputs` into logits. Call it after the first batch."""
        if not self._head_is_last:
            return Head(None)
        weight, bias = self._module.weight, getattr(self._module, "bias", None)
        if self._given_head is not None and self._given_head.weight is not None:
            weight, bias = self._given_head.weight, self._given_head.bias
        return Head(*(None if each is None else each.detach() for each in (weight, bias)))

    @torch.inference_mode()
    def head_inputs(self, windows: Sequence[Window]) -> list[Tensor]:
        """For each window (its rows, hidden); or its logits, (its rows, vocabulary), where the head is not last.

        Raises:
            JobError: (slug "out-of-memory") the batch does not fit.
        """
        return self.differentiable_head_inputs(windows)

    def differentiable_head_inputs(self, windows: Sequence[Window]) -> list[Tensor]:
        """As `head_inputs`, with an autograd graph where one is recorded."""
        with translate_out_of_memory(self._device, batch=len(windows)):
            if self._head_is_last is None:
                with torch.no_grad():
                    self._head_is_last = self._check_head(windows[:1])
            inputs = self._run_up_to_head(windows) if self._head_is_last else self._logits(windows)
            return [
                each[torch.tensor(window.rows, device=each.device)]
                for each, window in zip(inputs, windows, strict=True)
            ]

    @torch.inference_mode()
    def output_of(self, module: Any, windows: Sequence[Window]) -> Any:
        """What a module of the model returns. Nothing that follows it is run."""

        def stop(_: Any, args: tuple[Any, ...], output: Any) -> None:
            raise _ReachedError(output)

        handle = module.register_forward_hook(stop)
        try:
            with translate_out_of_memory(self._device, batch=len(windows)):
                self._run(windows)
        except _ReachedError as reached:
            return reached.value
        finally:
            handle.remove()
        raise RuntimeError("the model does not run this module")

    def _check_head(self, windows: Sequence[Window]) -> bool:
        """Whether the head gives the model's logits. A softcap shows on large logits only: the configuration tells."""
        if self._module is None or not hasattr(self._module, "weight") or softcaps_logits(self._model.config):
            return False
        inputs: list[Tensor] = []
        with _pre_forward_hook(self._module, lambda _, args: inputs.append(args[0])):
            logits = self._logits(windows)
        return len(inputs) == 1 and _are_close(self._module(inputs[0]), logits)

    def _run_up_to_head(self, windows: Sequence[Window]) -> Tensor:
        """The inputs of the head, which itself is not run."""

        def stop(_: Any, args: tuple[Tensor, ...]) -> None:
            raise _ReachedError(args[0])

        try:
            with _pre_forward_hook(self._module, stop):
                self._run(windows)
        except _ReachedError as reached:
            inputs: Tensor = reached.value
            return inputs
        raise RuntimeError("the model does not run its output head")

    def _logits(self, windows: Sequence[Window]) -> Tensor:
        logits: Tensor = self._run(windows).logits
        return logits.float()

    def _run(self, windows: Sequence[Window]) -> Any:
        longest = max(len(window.ids) for window in windows)
        ids = torch.full((len(windows), longest), _PADDING_ID)
        mask = torch.zeros_like(ids)
        for row, window in enumerate(windows):
            ids[row, : len(window.ids)] = torch.tensor(window.ids)
            mask[row, : len(window.ids)] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        return self._model(input_ids=ids, attention_mask=mask, use_cache=False)


class _ReachedError(Exception):
    """Ends a pass of the model, with the input or the output of the module that was reached."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def _are_close(recomputed: Tensor, logits: Tensor) -> bool:
    """To the rounding of the head's dtype; NaN equals NaN."""
    if recomputed.shape != logits.shape:
        return False
    tolerance = torch.finfo(recomputed.dtype).eps * float(logits.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(recomputed.to(logits), logits, rtol=0, atol=tolerance, equal_nan=True)


@contextmanager
def _pre_forward_hook(module: Any, hook: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def last_position_only(head: Any) -> Iterator[None]:
    """The output head computes the logits of the last position only; `None` changes nothing."""
    if head is None:
        yield
        return
    with _pre_forward_hook(head, lambda _, args: (args[0][:, -1:].contiguous(), *args[1:])):
        yield


@contextmanager
def contiguous_head_inputs(head: Any) -> Iterator[None]:
    """The output head gets contiguous inputs; `None` changes nothing.

    Of a slice such as `hidden[:, -1:]`, torch makes a batched product, for which it copies the weight once for each
    row: 28 rows of 49,152 x 576 in bfloat16 take 2.5 s instead of 0.014 s.
    """
    if head is None:
        yield
        return
    with _pre_forward_hook(head, lambda _, args: (args[0].contiguous(), *args[1:])):
        yield


@contextmanager
def translate_out_of_memory(device: torch.device, *, batch: int | None = None) -> Iterator[None]:
    """Raises JobError (slug "out-of-memory") in place of what torch raises when memory runs out.

    Args:
        batch: how many texts are run together; None while a model is loaded.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        subject = "The model" if batch is None else f"A batch of {batch}"
        smaller = "shorter texts, or " if batch == 1 else f"--batch {batch // 2}, or " if batch else ""
        raise JobError(
            f"{subject} does not fit into the memory of {device}.",
            cure=f"Use {smaller}--dtype bfloat16. To resume, repeat the command: finished work is kept.",
            slug="out-of-memory",
        ) from error


def batch_windows(windows: Sequence[Window], *, size: int | None, tokens: int) -> list[list[int]]:
    """Indices of the windows that are run together: similar lengths together, each once, always in the same order.

    Args:
        size: windows per batch; None: as many as fit into `tokens`.
        tokens: the most tokens per batch, padding included.
    """
    longest_first = sorted(range(len(windows)), key=lambda i: (-len(windows[i].ids), i))
    batches: list[list[int]] = []
    for index in longest_first:
        if batches and _fits(batches[-1], windows, size, tokens):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _fits(batch: Sequence[int], windows: Sequence[Window], size: int | None, tokens: int) -> bool:
    if size is not None:
        return len(batch) < size
    return (len(batch) + 1) * len(windows[batch[0]].ids) <= tokens
