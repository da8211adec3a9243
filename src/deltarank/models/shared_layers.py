"""Passes of a model in which only the later layers have changed: the output of those before is replayed.

If layer i of L is changed, the layers before it compute what they computed before. With one change after another, in
the order of the layers, a pass costs L - i layers, and one more to move on: half of the work of whole passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deltarank.models.predict import Predictor, Window
from deltarank.models.skeleton import AnyModel

_FAILURES = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError)
"""What a layer may raise if it needs more than the output of the layer before."""


class SharedLayers:
    """The layers of a loaded model, and for each batch the output of the layer before the one that changes.

    It is right where a layer gets nothing from earlier ones but the output of the last; `holds` finds out.
    """

    def __init__(self, model: AnyModel, predictor: Predictor) -> None:
        self._predictor = predictor
        self._name, self._layers = decoder_layers(model)
        self._outputs: dict[tuple[Window, ...], tuple[int, Any]] = {}

    def has(self, tensor: str, layer: int) -> bool:
        """Whether a tensor of the model is in this layer."""
        return layer < len(self._layers) and tensor.startswith(f"{self._name}.{layer}.")

    def prepare(self, windows: Sequence[Window], layer: int) -> None:
        """Computes what enters a layer, from what entered the last one that was prepared. No layer may be changed."""
        known, output = self._outputs.get(tuple(windows), (0, None))
        if known > layer:
            known, output = 0, None
        if known < layer:
            with self._replaying(known, output):
                output = self._predictor.output_of(self._layers[layer - 1], windows)
        self._outputs[tuple(windows)] = layer, output

    @contextmanager
    def replayed(self, windows: Sequence[Window]) -> Iterator[None]:
        """Passes of these windows begin at the layer that was prepared."""
        with self._replaying(*self._outputs[tuple(windows)]):
            yield

    def holds(self, windows: Sequence[Window]) -> bool:
        """Whether replayed passes give the same numbers, bit for bit, and leave what is replayed as it was."""
        if len(self._layers) < 2:
            return False
        whole = self._predictor.head_inputs(windows)
        try:
            return all(
                self._is_equal(windows, layer, whole) for layer in (len(self._layers) // 2, len(self._layers) - 1)
            )
        except _FAILURES:
            return False
        finally:
            self._outputs.clear()

    def _is_equal(self, windows: Sequence[Window], layer: int, whole: Sequence[Tensor]) -> bool:
        self.prepare(windows, layer)
        with self.replayed(windows):
            passes = [self._predictor.head_inputs(windows) for _ in range(2)]
        return all(torch.equal(one, other) for found in passes for one, other in zip(found, whole, strict=True))

    @contextmanager
    def _replaying(self, number: int, output: Any) -> Iterator[None]:
        """The first layers are not run; each returns the output of the last of them."""
        skipped = self._layers[:number]
        kept = [vars(layer).get("forward") for layer in skipped]
        try:
            for layer in skipped:
                layer.forward = lambda *_, **__: output
            yield
        finally:
            for layer, forward in zip(skipped, kept, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward


def decoder_layers(model: AnyModel) -> tuple[str, Sequence[Any]]:
    """The list of layers, with its name; an empty one if the model has none of the length that its config states."""
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return name, list(module)
    return "", []
