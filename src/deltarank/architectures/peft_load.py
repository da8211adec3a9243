"""What PEFT does with the tensors of an adapter, found by letting PEFT itself load it on the meta device.

PEFT loads what fits and says little of the rest: of keys that name no module of the model it warns at most.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from deltarank.architectures.loading_class import LoadingClass
from deltarank.architectures.transformers_logging import first_line, silence_transformers
from deltarank.system import import_silently, silence_logging

_ADAPTER = "default"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class PeftLoad:
    """What `PeftModel.from_pretrained` makes of an adapter.

    refusal  the error with which PEFT refuses it; None if it loads
    placed   tensor of the file -> the parameter of the PEFT model that becomes it, without "base_model.model."
    merged   tensors of the file from which PEFT makes others: experts of one layer, fused for transformers 5
    unused   tensors of the file that PEFT ignores
    missing  parameters of the adapter that no tensor fills; those of the factor B stay zero
    """

    refusal: str | None
    placed: Mapping[str, str]
    merged: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the file is used, and every parameter of the adapter filled."""
        return self.refusal is None and not self.unused and not self.missing


def load_with_peft(
    model_class: LoadingClass,
    config: Mapping[str, Any],
    tensors: Mapping[str, Sequence[int]],
    *,
    vocabulary: int | None = None,
) -> PeftLoad:
    """Loads an adapter as `PeftModel.from_pretrained` does, without any weights.

    Args:
        config: adapter_config.json.
        tensors: the shapes of the adapter's tensors by their keys in the file.
        vocabulary: the number of tokens to which the model is resized first; None: it is not.
    """
    import torch

    conversion = import_silently("peft.utils.transformers_weight_conversion")
    convert = conversion.convert_peft_adapter_state_dict_for_transformers
    file = {
        key: torch.nn.Parameter(torch.empty(tuple(shape), device="meta"), requires_grad=False)
        for key, shape in tensors.items()
    }
    with silence_logging(), silence_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = model_class.new_model()
            if vocabulary is not None:
                model.resize_token_embeddings(vocabulary, mean_resizing=False)
            return _load(_inject(model, config), file, convert)
        except Exception as error:  # PEFT refuses with errors of many kinds
            return PeftLoad(first_line(error), {})


def _load(model: Any, file: Mapping[str, Any], convert: Callable[..., Mapping[str, Any]]) -> PeftLoad:
    """
    Args:
        convert: PEFT's function that renames and merges the tensors of a file for transformers 5.
    """
    from peft.utils import set_peft_model_state_dict

    converted = convert(model, model.peft_config[_ADAPTER], dict(file), adapter_name=_ADAPTER)
    same = {id(tensor) for tensor in converted.values()}
    kept = {key for key, tensor in file.items() if id(tensor) in same}
    result = set_peft_model_state_dict(model, dict(file), adapter_name=_ADAPTER, low_cpu_mem_usage=True)
    parameters = model.named_parameters(remove_duplicate=False)
    names = {id(parameter): name.removeprefix(_PREFIX) for name, parameter in parameters}
    placed = {key: names[id(tensor)] for key, tensor in file.items() if id(tensor) in names}
    unused = [key for key in file if key in kept and key not in placed]
    merged = [key for key in file if key not in kept]
    if len(result.unexpected_keys) > len(unused):  # some of the tensors that PEFT made have no place
        unused, merged = [*unused, *merged], []
    missing = [name.removeprefix(_PREFIX) for name in result.missing_keys if f".{_ADAPTER}" in name]
    return PeftLoad(None, placed, tuple(merged), tuple(unused), tuple(missing))


def _inject(model: Any, config: Mapping[str, Any]) -> Any:
    """The model with empty factors, where the configuration wants them."""
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel

    # Initial values are not needed, and some are computed from the weights, which are not there.
    made = PeftConfig.from_peft_type(**{**config, "init_lora_weights": True, "inference_mode": True})
    peft_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(made.task_type, PeftModel)
    return peft_class(model, made, _ADAPTER, low_cpu_mem_usage=True)


def peft_version() -> str:
    """As in "0.21.2"."""
    return version("peft")
