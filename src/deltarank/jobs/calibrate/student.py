"""The base with an adapter on it, of which A and B are trained. PEFT applies the adapter, as its users will."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from deltarank.adapters import WEIGHTS_FILE
from deltarank.architectures import silence_transformers
from deltarank.errors import JobError
from deltarank.jobs.calibrate.placement import has_fast_bfloat16
from deltarank.jobs.extract import ExtractionPlan
from deltarank.models import AnyModel, Head, Predictor, Window
from deltarank.results import WeightPlacement, count
from deltarank.system import import_silently

peft = import_silently("peft")  # it imports bitsandbytes, which logs
if find_spec("bitsandbytes"):
    import_silently("peft.tuners.lora.bnb")  # and so does its first use

Factors = Mapping[str, Tensor]
"""The trained parameters, by their names in PEFT's model."""


class Student:
    """A base model that carries an adapter.

    `frozen` are the names of the factors that are not trained.

    Args:
        base: a loaded model. PEFT puts the adapter's modules into it.
        adapter: the folder of the adapter.
        head: the base's output head, if it does not hold its weights.
        placement: where its weights are.
    """

    def __init__(
        self, base: AnyModel, adapter: Path, device: torch.device, head: Head | None, placement: WeightPlacement
    ) -> None:
        self._adapter, self._device = adapter, device
        self._placement = placement
        with silence_transformers(), warnings.catch_warnings(action="ignore"):
            self.model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True, low_cpu_mem_usage=True).eval()
        self._load_factors()
        self._choose_parameters()
        self._predictor = Predictor(self.model, device, head, head_may_be_last=not self._adapts_head())

    @property
    def tokens_at_once(self) -> int:
        """That are read together."""
        return self._placement.tokens_at_once

    def _load_factors(self) -> None:
        """In float32 on the device, and whole tensors likewise: PEFT keeps the dtypes of the file, beside a base in
        float32, and puts factors where the base's weights are, which may be on the meta device."""
        stored = load_file(self._adapter / WEIGHTS_FILE)
        for prefix, module in self.model.named_modules():
            for name in dict(module.named_parameters(recurse=False)):
                tensor = stored.get(_name_in_file(f"{prefix}.{name}"))
                if tensor is not None:
                    setattr(module, name, torch.nn.Parameter(tensor.to(self._device, torch.float32)))

    def _choose_parameters(self) -> None:
        """Trains the factors that PEFT holds as the file does; those of experts that it fuses stay as they are.

        Raises:
            JobError: (slug "calibration-needs-peft") there is nothing else.
        """
        with safe_open(self._adapter / WEIGHTS_FILE, "pt") as file:
            stored = set(filter(_is_factor, file.keys()))
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.replace(".default.", ".") in stored)
        self.frozen = sorted(stored - {name.replace(".default.", ".") for name in self.parameters})
        if not self.parameters:
            raise JobError(
                f"PEFT holds all {count(len(stored), 'factor')} fused, such as {self.frozen[0]}: trained like that, "
                "they cannot be taken apart again.",
                cure="Extract more than the experts, or leave out --calibrate.",
                slug="calibration-needs-peft",
            )

    def _adapts_head(self) -> bool:
        head = self.model.get_output_embeddings()
        return head is not None and any(_is_factor(name) for name, _ in head.named_parameters())

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """A and B of every module. Those that are zero, for modules that did not change, have no gradient and stay."""
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

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
        exact_attention = _AttentionInFloat32() if in_bfloat16 and self._attends_in_float32 else nullcontext()
        with exact_attention, torch.autocast(self._device.type, torch.bfloat16, enabled=in_bfloat16):
            inputs = self._predictor.differentiable_head_inputs(windows)
        return inputs, self._predictor.head

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Within it the adapter is off."""
        with self.model.disable_adapter():
            yield

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Within it A and B are rounded as `save` rounds them."""
        exact = self.factors()
        self.set_factors({name: each.to(self._stored_dtype).to(each.dtype) for name, each in exact.items()})
        try:
            yield
        finally:
            self.set_factors(exact)

    @cached_property
    def _stored_dtype(self) -> torch.dtype:
        """Of all factors of the adapter."""
        with safe_open(self._adapter / WEIGHTS_FILE, "pt") as file:
            dtype: torch.dtype = file.get_tensor(next(filter(_is_factor, file.keys()))).dtype
        return dtype

    @torch.no_grad()
    def save(self, path: Path) -> None:
        """Writes adapter_model.safetensors: that of the adapter with the current A and B, in its dtypes.

        Raises:
            OSError: it cannot be written.
        """
        stored = load_file(self._adapter / WEIGHTS_FILE)
        trained = peft.get_peft_model_state_dict(self.model, save_embedding_layers=False)
        for name in filter(_is_factor, stored.keys() - set(self.frozen)):
            stored[name] = trained[name].to(stored[name].dtype).cpu().contiguous()
        try:
            save_file(stored, path, metadata={"format": "pt"})
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error

    @property
    def has_fast_bfloat16(self) -> bool:
        return has_fast_bfloat16(self._device)

    @property
    def _attends_in_float32(self) -> bool:
        """A layer that runs twice would attend otherwise the second time, which is outside of the mode."""
        return self._device.type == "cpu" and self._placement is WeightPlacement.WHOLE


def add_tokens(model: AnyModel, plan: ExtractionPlan, vocabulary: int) -> None:
    """Adds the finetune's new tokens to the base where the adapter carries embeddings or a head with them, which PEFT
    loads only then. Their rows in the base are random."""
    carries = any(tensor.kind in ("embedding", "lm_head") and tensor.whole_module for tensor in plan.carried)
    if carries and vocabulary > model.get_input_embeddings().num_embeddings:
        with silence_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(vocabulary, mean_resizing=False)


class _AttentionInFloat32(TorchFunctionMode):
    """Attention in float32 within an autocast: the gradient of torch's fused kernel for CPUs is slow in bfloat16."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            given = {name: _in_float32(each) for name, each in (kwargs or {}).items()}
            return function(*map(_in_float32, args), **given)


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _name_in_file(name: str) -> str:
    """The name in the adapter's file of a parameter of PEFT's model.

    Of two fused experts, the factors of one are those of the other's base layer: "experts.base_layer.lora_A.weight".
    """
    if _is_factor(name):
        return name.replace(".default.", ".")
    for part in (".modules_to_save.default.", ".base_layer."):
        name = name.replace(part, ".")
    return name


def _is_factor(name: str) -> bool:
    return ".lora_A." in f".{name}." or ".lora_B." in f".{name}."
