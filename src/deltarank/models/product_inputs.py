"""The inputs x of the products that a model computes with some of its weights, as sums of x x'.

A mode of torch sees every product while the model runs, and knows a weight by its address. So linear layers, GPT-2's
Conv1D, experts in one tensor, embeddings and tied heads are all found alike, and only the tokens that are routed to an
expert count as its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from deltarank.architectures import silence_transformers
from deltarank.errors import JobError
from deltarank.models.predict import last_position_only, translate_out_of_memory
from deltarank.models.skeleton import AnyModel

_MATMULS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
_EXPERTS_ONE_BY_ONE = "eager"
"""transformers' name of the forward pass that multiplies each expert's tokens with the expert's own matrix."""


@dataclass(frozen=True, order=True)
class WeightSlot:
    """A parameter of a model, or the matrix at one index of a stack of matrices."""

    parameter: str
    index: int | None = None


@dataclass
class InputSum:
    """The inputs of one use of a weight.

    total    sum of x x' over the inputs, (d, d) in float32; (d,) counts of one-hot inputs
    on_rows  whether entries of x belong to the rows of the weight as it is stored
    tokens   the number of inputs
    """

    total: Tensor
    on_rows: bool
    tokens: int = 0

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, d), or (tokens,) indices of one-hot vectors."""
        self.tokens += len(inputs)
        if self.total.ndim == 1:
            self.total += torch.bincount(inputs, minlength=len(self.total))
        else:
            rows = inputs.float()
            self.total.addmm_(rows.T, rows)


InputSums = Mapping[WeightSlot, Sequence[InputSum]]


def sum_inputs(
    model: AnyModel,
    documents: Sequence[Sequence[int]],
    slots: Sequence[WeightSlot],
    on_document: Callable[[int], None] = lambda tokens: None,
) -> InputSums:
    """Runs a model over documents, one at a time, and sums the inputs of the products with some of its weights.

    The first token of each document is read, but its inputs are left out: it is an attention sink, and its activations
    can be hundreds of times larger than those of others (Sun et al. 2024, "Massive Activations"). It counts where
    the model keeps a recurrent state, or no cache: there a document cannot be read in two parts.

    Args:
        documents: token ids, at least two each.
        on_document: called with the number of tokens of each document.

    Returns:
        For each slot its uses: one, or two for a tied embedding, or none if no product with it was seen.

    Raises:
        JobError: slug "out-of-memory"; slug "outputs-not-finite": an input is NaN or infinite.
    """
    with silence_transformers():
        model.set_experts_implementation(_EXPERTS_ONE_BY_ONE)
    recorder = _Recorder(model, slots)
    head = model.get_output_embeddings()
    needs_head = head is not None and any(slot.parameter in _names(model, head) for slot in slots)
    with torch.inference_mode(), translate_out_of_memory(model.device, batch=1):
        for ids in documents:
            with last_position_only(None if needs_head else head):
                _read(model, torch.tensor([list(ids)], device=model.device), recorder)
            on_document(len(ids))
    recorder.check_finite()
    return recorder.sums


def _read(model: AnyModel, ids: Tensor, recorder: _Recorder) -> None:
    cache = {} if model._is_stateful else _cache_of(model(input_ids=ids[:, :1], use_cache=True))
    with recorder:
        model(input_ids=ids[:, 1:] if cache else ids, use_cache=bool(cache), **cache)


def _cache_of(output: Any) -> dict[str, Any]:
    """The cache as a keyword of the next call; empty if there is none. transformers 5 has two names for it."""
    name = next((name for name in ("cache", "past_key_values") if name in output), None)
    return {} if name is None else {name: output[name]}


def _names(model: AnyModel, module: Any) -> set[str]:
    """The names of a module's parameters, under each of which the model lists them if they are tied."""
    owned = {id(parameter) for parameter in module.parameters()}
    return {name for name, each in model.named_parameters(remove_duplicate=False) if id(each) in owned}


@dataclass(frozen=True)
class _Watched:
    """A matrix that is watched, as it lies in memory."""

    slot: WeightSlot
    stride: tuple[int, ...]


class _Recorder(TorchFunctionMode):
    """Adds up inputs while it is entered. Weights that get the same input one after another share a sum."""

    def __init__(self, model: AnyModel, slots: Sequence[WeightSlot]) -> None:
        super().__init__()
        self.sums: dict[WeightSlot, list[InputSum]] = {}
        self._watched = dict(_addresses(model, slots))
        self._last: tuple[Tensor, InputSum] | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.linear:
            self._see(_operand(args, kwargs, 0, "input"), _operand(args, kwargs, 1, "weight"), contracted=1)
        elif function is functional.embedding:
            self._see_one_hot(_operand(args, kwargs, 0, "input"), _operand(args, kwargs, 1, "weight"))
        elif function is torch.addmm:
            self._see(_operand(args, kwargs, 1, "mat1"), _operand(args, kwargs, 2, "mat2"), contracted=0)
        elif function in _MATMULS:
            self._see(args[0], args[1] if len(args) > 1 else next(iter(kwargs.values())), contracted=0)
        return function(*args, **kwargs)

    def _see(self, inputs: Tensor, weight: Tensor, *, contracted: int) -> None:
        """A product in which this dimension of the weight, as it is passed, belongs to the entries of the inputs."""
        watched = self._watched.get(weight.data_ptr())
        if watched is None or weight.ndim != 2:
            return
        on_rows = (contracted == 0) != (weight.stride() != watched.stride)
        uses = self.sums.setdefault(watched.slot, [])
        if self._last is not None and self._last[0] is inputs and self._last[1].on_rows == on_rows:
            if not any(use is self._last[1] for use in uses):
                uses.append(self._last[1])
            return
        size = weight.shape[contracted]
        found = _find_or_add(uses, (size, size), inputs.device, on_rows=on_rows)
        found.add(inputs.reshape(-1, size))
        self._last = inputs, found

    def _see_one_hot(self, indices: Tensor, weight: Tensor) -> None:
        watched = self._watched.get(weight.data_ptr())
        if watched is not None:
            uses = self.sums.setdefault(watched.slot, [])
            _find_or_add(uses, (len(weight),), weight.device, on_rows=True).add(indices.reshape(-1))

    def check_finite(self) -> None:
        for slot, uses in self.sums.items():
            if not all(use.total.isfinite().all() for use in uses):
                raise JobError(
                    f"The finetune's activations are NaN or infinite: the inputs of {slot.parameter!a}.",
                    cure="Look for NaN in the checkpoint: `deltarank compare` without --calibration-text names the "
                    "tensors.",
                    slug="outputs-not-finite",
                )


def _addresses(model: AnyModel, slots: Sequence[WeightSlot]) -> Iterator[tuple[int, _Watched]]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for slot in slots:
        weight = parameters[slot.parameter]
        matrix = weight if slot.index is None else weight[slot.index]
        yield matrix.data_ptr(), _Watched(slot, matrix.stride())


def _find_or_add(uses: list[InputSum], shape: tuple[int, ...], device: torch.device, *, on_rows: bool) -> InputSum:
    """The sum of this use of a weight, or a new one."""
    found = next((use for use in uses if use.on_rows == on_rows and use.total.shape == shape), None)
    if found is None:
        found = InputSum(torch.zeros(shape, device=device), on_rows)
        uses.append(found)
    return found


def _operand(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs[name]
