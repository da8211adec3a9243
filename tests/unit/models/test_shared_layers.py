"""Passes from a changed layer on give the numbers of whole passes, and models for which they would not are found."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import tiny_architectures
from deltarank.models import Predictor, SharedLayers, Window

WINDOWS = [
    Window.from_mask(range(start, start + length), [True] * length) for start, length in ((3, 9), (5, 14), (1, 6))
]
MODELS = {**tiny_architectures.DENSE, **tiny_architectures.EXPERTS}


def loaded(name: str) -> tuple[Any, Predictor]:
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    return model, Predictor(model, torch.device("cpu"))


def number_of_layers(model: Any) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def equal(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def weights_of_layer(model: Any, shared: SharedLayers, layer: int) -> list[torch.Tensor]:
    return [weight for name, weight in model.named_parameters() if shared.has(name, layer)]


@pytest.mark.parametrize("name", MODELS)
def test_a_change_of_one_layer_gives_the_numbers_of_whole_passes(name: str) -> None:
    model, predictor = loaded(name)
    shared = SharedLayers(model, predictor)
    assert shared.holds(WINDOWS[:1])

    for layer in range(number_of_layers(model)):
        for windows in (WINDOWS, WINDOWS[:1]):
            shared.prepare(windows, layer)
        weights = weights_of_layer(model, shared, layer)
        before = [each.clone() for each in weights]
        for each in weights:
            each.mul_(1.5)
        whole = predictor.head_inputs(WINDOWS), predictor.head_inputs(WINDOWS[:1])
        with shared.replayed(WINDOWS):
            assert equal(predictor.head_inputs(WINDOWS), whole[0])
        with shared.replayed(WINDOWS[:1]):
            assert equal(predictor.head_inputs(WINDOWS[:1]), whole[1])
        for each, old in zip(weights, before, strict=True):
            each.copy_(old)


def test_layers_may_come_in_any_order() -> None:
    model, predictor = loaded("llama")
    shared, whole = SharedLayers(model, predictor), predictor.head_inputs(WINDOWS)
    last = number_of_layers(model) - 1
    for layer in (last, 0, last, last - 1):
        shared.prepare(WINDOWS, layer)
        with shared.replayed(WINDOWS):
            assert equal(predictor.head_inputs(WINDOWS), whole)


def test_the_layers_in_front_are_not_run() -> None:
    model, predictor = loaded("llama")
    shared, runs = SharedLayers(model, predictor), []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: runs.append(number))
    predictor.head_inputs(WINDOWS)  # finds out about the head, in a pass of its own
    layers = list(range(number_of_layers(model)))
    runs.clear()
    for layer in layers:
        shared.prepare(WINDOWS, layer)
        with shared.replayed(WINDOWS):
            predictor.head_inputs(WINDOWS)

    expected = [number for layer in layers for number in (*layers[max(layer - 1, 0) : layer], *layers[layer:])]
    assert runs == expected


def test_a_model_whose_layers_use_more_than_the_layer_before_is_found() -> None:
    """Its last layer adds what its first one computed, as models with shared keys and values do."""
    model, predictor = loaded("llama")
    first, last = model.model.layers[0], model.model.layers[-1]
    kept: list[torch.Tensor] = []
    first.mlp.register_forward_hook(lambda _, args, output: kept.append(output))
    last.mlp.register_forward_hook(lambda _, args, output: output + kept.pop() if kept else output)

    assert not SharedLayers(model, predictor).holds(WINDOWS[:1])
    assert all("forward" not in vars(layer) for layer in model.model.layers)
