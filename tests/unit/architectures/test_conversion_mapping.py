"""Names in files become names in the class as transformers itself loads them, for every model type that it converts."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from deltarank.architectures import LoadedTensors, LoadingClass, find_loading_class
from every_architecture import CONVERTED, FAMILIES, build, config_of, saved_tensors

SLOW = [pytest.param(model_type, marks=pytest.mark.slow) for model_type in CONVERTED if model_type not in FAMILIES]


def load(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], device: str) -> Any:
    """Transformers' own loading into this model."""
    settings = LoadStateDictConfig(
        weight_mapping=get_model_conversion_mapping(model), device_map={"": device}, dtype=torch.float32
    )
    return convert_and_load_state_dict_in_model(
        model=model, state_dict=dict(tensors), load_config=settings, disk_offload_index=None
    )[0]


def check_renamed(model: PreTrainedModel, loaded: LoadedTensors, tensors: Mapping[str, torch.Tensor]) -> None:
    """Each tensor is filled with a number of its own (in one place of memory), and found again."""
    numbers = {name: float(i + 1) for i, name in enumerate(loaded.renamed) if tensors[name].numel()}
    filled = {name: torch.tensor(number).expand(tensors[name].shape) for name, number in numbers.items()}
    load(model, filled, "cpu")
    found = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}

    for name, number in numbers.items():
        parameter = loaded.renamed[name]
        assert not found[parameter].is_meta, (name, parameter)
        assert float(found[parameter].detach().flatten()[0]) == number, (name, parameter)


@pytest.mark.parametrize("model_type", [*FAMILIES, *SLOW])
def test_names_are_those_that_transformers_loads(model_type: str) -> None:
    model = build(model_type)
    if isinstance(model, str):
        pytest.skip(model)
    try:
        tensors = {name: torch.empty(t.shape, device="meta") for name, t in saved_tensors(model).items()}
    except Exception as error:  # some conversions go one way only
        pytest.skip(f"it cannot be saved: {error}")
    found = find_loading_class(config_of(model))
    assert isinstance(found, LoadingClass), found
    loaded = found.load({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    report = load(model, tensors, "meta")

    assert found.name == type(model).__name__
    assert set(loaded.missing) == report.missing_keys
    assert len(loaded.unused) == len(report.unexpected_keys)
    assert len(loaded.mismatched) == len(report.mismatched_keys)
    check_renamed(model, loaded, tensors)
