"""Gradients with the activations of one layer in memory: a layer is run again on the way back (Chen et al. 2016).

transformers' own switch for it works in training mode only, in which dropout is on. So the layers are wrapped here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from deltarank.models.shared_layers import decoder_layers
from deltarank.models.skeleton import AnyModel


def largest_layer(model: AnyModel) -> int:
    """The number of parameters of the largest layer of a model, which may be on the meta device; 0: none is found."""
    layers = decoder_layers(model)[1]
    return max((sum(each.numel() for each in layer.parameters()) for layer in layers), default=0)


def recompute_layers(model: AnyModel) -> None:
    """From now on an autograd graph holds the inputs of the layers only.

    The gradients are equal to the bit: what is run again is the same. Of a streamed model, one layer's weights are in
    memory on the way back, too.
    """
    for layer in decoder_layers(model)[1]:
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # A layer that stops early would keep its last weight, because the hook that drops it runs after the product.
        with set_checkpoint_early_stop(False):
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
