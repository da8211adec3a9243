"""The options of `outputs`, checked before anything is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch

from deltarank.errors import UsageError
from deltarank.results import DEFAULT_OUTPUTS_RANKS, PREFERRED_RANK, Ranks
from deltarank.runtime import InputKeywords, Ref, SolverOptions, as_tuple, check_choice, is_number
from deltarank.servers import get_server
from deltarank.system import Default, expand_home

MODEL_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO_DTYPE = "auto"

UNITS = ("module", "layer")

QUICK = {"ranks": (PREFERRED_RANK,), "samples": Default.QUICK_SAMPLES, "max_tokens": Default.QUICK_MAX_TOKENS}
"""The defaults of a quick measurement."""

CONTROL_TOKENS, QUICK_CONTROL_TOKENS = 2048, 512


class OutputsKeywords(InputKeywords, total=False):
    """The keywords of `deltarank.outputs` and `deltarank.plan_outputs`; `deltarank.outputs` explains them."""

    ranks: Ranks
    device: str
    adapters: Sequence[Ref]
    server: str | None
    models: Sequence[Ref]
    yardsticks: Sequence[str]
    texts: Sequence[Ref]
    prompts: Ref | None
    attribute: str | None
    samples: int
    max_tokens: int
    seed: int
    dtype: str
    batch: int | None
    trust_remote_code: bool
    quick: bool


@dataclass(frozen=True, kw_only=True)
class OutputsOptions:
    """The options of a measurement of outputs; `deltarank.outputs` explains each.

    Equal options on equal inputs give equal numbers. Ranks and paths are normalised.

    Raises:
        UsageError: a value is not usable.
    """

    ranks: tuple[int, ...] = DEFAULT_OUTPUTS_RANKS
    device: str = Default.DEVICE
    adapters: tuple[str, ...] = ()
    server: str | None = None
    models: tuple[str, ...] = ()
    yardsticks: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    prompts: str | None = None
    attribute: str | None = None
    samples: int = Default.SAMPLES
    max_tokens: int = Default.MAX_TOKENS
    seed: int = Default.SEED
    dtype: str = Default.MODEL_DTYPE
    batch: int | None = None
    trust_remote_code: bool = False
    quick: bool = False

    def __post_init__(self) -> None:
        self._set("ranks", self.solver_options.ranks)
        self._set("device", self.solver_options.device)
        check_choice("dtype", self.dtype, (AUTO_DTYPE, *MODEL_DTYPES))
        if self.server is not None:
            get_server(self.server)
        if self.attribute is not None:
            check_choice("unit", self.attribute, UNITS)
        _check_number("samples", self.samples, least=0)
        _check_number("max-tokens", self.max_tokens, least=1)
        if self.batch is not None:
            _check_number("batch", self.batch, least=1)
        for name in ("adapters", "models", "texts"):
            self._set(name, _paths(getattr(self, name)))
        self._set("yardsticks", tuple(dict.fromkeys(as_tuple(self.yardsticks))))
        if self.prompts is not None:
            self._set("prompts", expand_home(self.prompts))
        if self.samples == 0 and not self.texts:
            raise UsageError(
                "There is nothing to compare on: no text is given, and no answers are sampled.",
                cure="Add --text FILE, or use --samples 1 or more.",
                slug="nothing-to-read",
            )

    @classmethod
    def of_keywords(cls, **keywords: Any) -> OutputsOptions:
        """Of the keywords of a function: with `quick`, other values are the defaults of those that are not given."""
        return cls(**{**(QUICK if keywords.get("quick") else {}), **keywords})

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen; its values are normalised once, here

    @cached_property
    def solver_options(self) -> SolverOptions:
        """The options of the decomposition."""
        return SolverOptions(ranks=self.ranks, device=self.device)

    @property
    def control_tokens(self) -> int:
        """How much of each text a control is scored on: it must read zero everywhere."""
        return QUICK_CONTROL_TOKENS if self.quick else CONTROL_TOKENS

    @property
    def torch_device(self) -> torch.device:
        return self.solver_options.torch_device

    @property
    def torch_dtype(self) -> torch.dtype:
        return MODEL_DTYPES[self.dtype]

    def with_dtype(self, stored: torch.dtype) -> OutputsOptions:
        """With "auto" replaced by a dtype. `stored`: the one that most of the finetune is stored in."""
        if self.dtype != AUTO_DTYPE:
            return self
        use_stored = self.torch_device.type != "cpu" and stored in MODEL_DTYPES.values()
        return replace(self, dtype=str(stored).removeprefix("torch.") if use_stored else "float32")

    def to_plain(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def _check_number(option: str, value: int, *, least: int) -> None:
    if not is_number(value, whole=True) or value < least:
        raise UsageError(
            f"--{option} is {value}; the smallest value is {least}.",
            cure=f"Give a whole number of at least {least}.",
            slug="bad-number",
        )


def _paths(values: Ref | Sequence[Ref]) -> tuple[str, ...]:
    """One path, or several."""
    return tuple(expand_home(each) for each in ([values] if isinstance(values, str | os.PathLike) else values))
