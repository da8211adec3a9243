"""The base with an adapter on it, of which A and B are trained. PEFT applies the adapter, as its users will."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltarank.adapters import WEIGHTS_FILE
from deltarank.architectures import silence_transformers
from deltarank.models import AnyModel, Head, Predictor, Window
from deltarank.system import import_silently

import_silently("peft.tuners.lora.bnb")  # the first use of PEFT imports it, and with it bitsandbytes

Factors = Mapping[str, Tensor]
"""The trained parameters, by their names in PEFT's model."""


class Student:
    """A base model that carries an adapter.

    Args:
        base: a loaded model. PEFT puts the adapter's modules into it.
        adapter: the folder of the adapter.
    """

    def __init__(self, base: AnyModel, adapter: Path, device: torch.device) -> None:
        self._adapter, self._device = adapter, device
        with silence_transformers(), warnings.catch_warnings(action="ignore"):
            self._model = PeftModel.from_pretrained(base, adapter, is_trainable=True).eval()
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(_is_factor(name))
        self._predictor = Predictor(self._model, device, head_may_be_last=not self._adapts_head())

    def _adapts_head(self) -> bool:
        head = self._model.get_output_embeddings()
        return head is not None and any(_is_factor(name) for name, _ in head.named_parameters())

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """A and B of every module. Those that are zero, for modules that did not change, have no gradient and stay."""
        return {name: each for name, each in self._model.named_parameters() if each.requires_grad}

    def factors(self) -> Factors:
        """A copy."""
        return {name: each.detach().clone() for name, each in self.parameters.items()}

    @torch.no_grad()
    def set_factors(self, factors: Factors) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(factors[name])

    def predict(self, windows: Sequence[Window]) -> tuple[list[Tensor], Head]:
        """For each window the inputs of the output head, and the head."""
        inputs = self._predictor.head_inputs(windows)
        return inputs, self._predictor.head

    def predict_with_gradient(self, windows: Sequence[Window], *, in_bfloat16: bool) -> tuple[list[Tensor], Head]:
        """As `predict`, with an autograd graph.

        Args:
            in_bfloat16: rounds the operands of matrix products, which takes half of the time where the processor has
                instructions for it.
        """
        with torch.autocast(self._device.type, torch.bfloat16, enabled=in_bfloat16):
            inputs = self._predictor.differentiable_head_inputs(windows)
        return inputs, self._predictor.head

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Within it the adapter is off."""
        with self._model.disable_adapter():
            yield

    @torch.no_grad()
    def save(self, path: Path) -> None:
        """Writes adapter_model.safetensors: that of the adapter with the current A and B, in its dtypes."""
        stored = load_file(self._adapter / WEIGHTS_FILE)
        trained = get_peft_model_state_dict(self._model)
        for name in filter(_is_factor, stored):
            stored[name] = trained[name].to(stored[name].dtype).cpu().contiguous()
        save_file(stored, path, metadata={"format": "pt"})

    @property
    def has_fast_bfloat16(self) -> bool:
        """Whether the device has instructions for products in bfloat16."""
        if self._device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported())
        known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return self._device.type == "cpu" and any(supported() for supported in known if supported is not None)


def _is_factor(name: str) -> bool:
    return ".lora_A." in f".{name}." or ".lora_B." in f".{name}."
