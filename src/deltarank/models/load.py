"""Models loaded whole: a transformers model filled with a candidate's weights.

transformers itself matches the names, so it renames and fuses tensors as it does when it loads a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from deltarank.architectures import silence_transformers
from deltarank.errors import CheckpointError
from deltarank.models.skeleton import AnyModel, ModelSkeleton
from deltarank.models.weights import EditedWeights
from deltarank.results import listing
from deltarank.system import import_silently

import_silently("transformers.quantizers.auto")  # from_pretrained imports it, and with it every quantisation library


def load_model(
    skeleton: ModelSkeleton, weights: EditedWeights, *, dtype: torch.dtype, device: torch.device
) -> AnyModel:
    """The whole model on `device`, in evaluation mode, as `from_pretrained` would load it from a folder.

    Raises:
        CheckpointError: a tensor cannot be read, or (slug "weights-incomplete") the weights lack one of the model's.
    """
    with silence_transformers():
        model, report = type(skeleton.meta_model).from_pretrained(
            None,
            config=skeleton.meta_model.config,
            state_dict=dict(weights),
            dtype=dtype,
            device_map={"": str(device)},
            output_loading_info=True,
        )
    _refuse_incomplete(skeleton, sorted(report["missing_keys"]))
    return prepare_for_inference(model, skeleton)


def _refuse_incomplete(skeleton: ModelSkeleton, missing: Sequence[str]) -> None:
    """transformers would fill the missing tensors with random numbers."""
    if missing:
        raise CheckpointError(
            f"{skeleton.folder.name_or_path!a} lacks {listing([ascii(name) for name in missing], most=3)}, which the "
            "model of its config.json needs.",
            cure="Finish the download or copy, or give the config.json that belongs to these weights.",
            slug="weights-incomplete",
        )


def prepare_for_inference(model: AnyModel, skeleton: ModelSkeleton) -> AnyModel:
    """In evaluation mode, with the checkpoint's generation_config.json, which names the tokens that end an answer."""
    if (found := read_generation_config(skeleton)) is not None:
        model.generation_config = found
    model.requires_grad_(False)
    return model.eval()


def read_generation_config(skeleton: ModelSkeleton) -> Any:
    """That of generation_config.json; None if there is none: the tokens named in config.json count then."""
    try:
        with silence_transformers():
            return GenerationConfig.from_pretrained(skeleton.folder.name_or_path, **skeleton.folder.options)
    except OSError:
        return None


def end_ids(skeleton: ModelSkeleton) -> frozenset[int]:
    """The ids of the tokens that end a text."""
    for config in (read_generation_config(skeleton), skeleton.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()
