"""The parts of an adapter: each is one change to one tensor of the base, made of one or two tensors of the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import torch

from deltarank.adapters.config_read import MERGE_CURE
from deltarank.adapters.keys import FactorKey, is_second_key, parse_key
from deltarank.checkpoints import FLOAT_DTYPES, PLAIN_DTYPES, TensorInfo, dimensions, quoted
from deltarank.errors import AdapterError

FACTOR_DTYPES = {**PLAIN_DTYPES, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
"""The dtypes of factors, by their safetensors names: PEFT copies values of any plain type."""

_MOST_DIMENSIONS = 5

NEW_TENSOR = "PEFT loads it, but the base has no such tensor to compare it with"
NOT_LORA = "it is not a factor of a plain LoRA"

TRANSPOSE_CURE = (
    "Transpose what is stored transposed and save the file again: "
    "`tensor.T.contiguous()`. PEFT expects A as (rank, inputs) and B as (outputs, rank)."
)


class PartKind(Enum):
    """What a part of an adapter does to a tensor of the base."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    BIAS = "bias"
    WHOLE = "whole"


@dataclass(frozen=True)
class AdapterPart:
    """One change to one tensor of the base.

    module           the module of that tensor; of a bare parameter, the parameter itself
    tensor           the name of that tensor as the adapter spells it: "model.layers.0.mlp.up_proj.weight"
    down, up         A and B of a LoRA; a bias or a whole tensor has `up` only
    has_prefix       its keys begin with "base_model.model."
    adapter_name     the name of the adapter that its keys hold: "default" for "lora_A.default.weight"; mostly ""
    is_wrapped       the tensor is inside a module that also has a LoRA (`base_layer`)
    is_parameter     the LoRA is on a bare parameter (`target_parameters`)
    expert           (index, number of experts) where all experts share A, split by rows, and B, split by columns
    rows             the rows of B that belong to this tensor, where B also covers another one (gate and up)
    is_turned        the file has A as (inputs, r) and B as (r, outputs): mlx-lm
    padding          rows of the tensor before and after those of B, where the tensor also holds another matrix
    """

    kind: PartKind
    module: str
    tensor: str
    up: TensorInfo
    down: TensorInfo | None = None
    has_prefix: bool = True
    adapter_name: str = ""
    is_wrapped: bool = False
    is_parameter: bool = False
    expert: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None
    is_turned: bool = False
    padding: tuple[int, int] = (0, 0)

    @property
    def outputs(self) -> int:
        """The number of rows of B for this tensor."""
        rows = self.up.shape[1] if self.is_turned else self.up.shape[0]
        return (self.rows[1] - self.rows[0] if self.rows else rows) + sum(self.padding)

    @property
    def inputs(self) -> int:
        """The number of columns of A; of a convolution, inputs times the size of the kernel."""
        assert self.down is not None
        return self.down.entries // max(self._down_rank, 1)

    @property
    def is_lora(self) -> bool:
        return self.down is not None

    @property
    def is_convolution(self) -> bool:
        return self.down is not None and len(self.down.shape) > 2

    @property
    def rank(self) -> int:
        """The rank of the factors as stored; 0 for anything but a LoRA."""
        return self._down_rank // self.expert[1] if self.expert else self._down_rank

    @property
    def _down_rank(self) -> int:
        if self.down is None:
            return 0
        return self.down.shape[1] if self.is_turned else self.down.shape[0]


class LoadEffect(Enum):
    """What an unused tensor does to the rest of the adapter when PEFT (0.21) loads it."""

    NONE = "none"
    REFUSED = "refused"
    RANDOM = "random"


@dataclass(frozen=True)
class UnusedTensor:
    """A tensor of the file that changes nothing, and why.

    module       the module that PEFT would look for it on; "" if `effect` does not depend on one
    cure         how the file is mended; "" if that is not known
    """

    name: str
    reason: str
    effect: LoadEffect = LoadEffect.NONE
    module: str = ""
    cure: str = ""


Parts = tuple[tuple[AdapterPart, ...], tuple[UnusedTensor, ...]]


def group_tensors(tensors: Iterable[tuple[str, TensorInfo]]) -> Parts:
    """The parts that tensors make, in their order, and the tensors that are in no part.

    Args:
        tensors: each under the key that it is read by.
    """
    parts: list[AdapterPart] = []
    unused: list[UnusedTensor] = []
    factors: dict[tuple[object, ...], _Factors] = {}
    tensors = sorted(tensors, key=lambda each: each[1].start)
    keys = {key for key, _ in tensors}
    for key, info in tensors:
        if is_second_key(key, keys):
            continue
        parsed = parse_key(key)
        if info.dtype not in (FACTOR_DTYPES if isinstance(parsed, FactorKey) else FLOAT_DTYPES):
            unused.append(UnusedTensor(info.name, f"stored as {info.dtype!a}, which cannot be read here"))
        elif isinstance(parsed, FactorKey):
            named = parsed.adapter_name if parsed.adapter_name != "default" else ""
            group = (parsed.is_embedding, parsed.module, parsed.has_prefix, named)
            unused += factors.setdefault(group, _Factors(parsed)).add(parsed, info)
        elif parsed is None:
            unused.append(UnusedTensor(info.name, NOT_LORA))
        else:
            kind = PartKind.BIAS if parsed.is_lora_bias else PartKind.WHOLE
            parts.append(
                AdapterPart(
                    kind,
                    parsed.module,
                    parsed.tensor,
                    info,
                    has_prefix=parsed.has_prefix,
                    adapter_name=parsed.adapter_name,
                    is_wrapped=parsed.is_wrapped,
                )
            )
    for pair in factors.values():
        entry = pair.paired()
        if isinstance(entry, AdapterPart):
            parts.append(entry)
        else:
            unused += entry
    return tuple(parts), tuple(unused)


class _Factors:
    """A and B of one module, as they are found."""

    def __init__(self, key: FactorKey) -> None:
        self._key = key
        self._found: dict[bool, TensorInfo] = {}

    def add(self, key: FactorKey, info: TensorInfo) -> list[UnusedTensor]:
        """What it replaces: of two tensors with the same meaning, PEFT takes the later."""
        earlier = self._found.pop(key.is_down, None)
        self._found[key.is_down] = info
        self._key = key
        reason = f"{quoted(info.name)} has the same meaning and comes later in the file"
        return [] if earlier is None else [UnusedTensor(earlier.name, reason)]

    def paired(self) -> AdapterPart | list[UnusedTensor]:
        key = self._key
        down, up = self._found.get(True), self._found.get(False)
        if down is None or up is None:
            return [_unpaired(key, each) for each in (down, up) if each is not None]
        if (
            len(down.shape) == len(up.shape) > 2
            and up.shape[1] < down.shape[0]
            and down.shape[0] % max(up.shape[1], 1) == 0 < up.shape[1]
        ):
            raise AdapterError(
                f"The adapter is more than a scaled product of two factors ({quoted(key.module)} is a convolution in "
                "groups).",
                cure=MERGE_CURE,
                slug="adapter-unsupported",
            )
        if turned := _stored_transposed(down.shape, up.shape):
            name, why = (up if turned == "B" else down).name, transposed_reason(turned, down.shape, up.shape)
            return [UnusedTensor(name, why, LoadEffect.REFUSED, key.module, TRANSPOSE_CURE)]
        if (reason := _shape_error(down.shape, up.shape)) is not None:
            return [UnusedTensor(each.name, reason, LoadEffect.REFUSED, key.module) for each in (down, up)]
        kind = PartKind.EMBEDDING if key.is_embedding else PartKind.LINEAR
        return AdapterPart(
            kind,
            key.module,
            f"{key.module}.weight",
            up,
            down,
            has_prefix=key.has_prefix,
            adapter_name=key.adapter_name,
        )


def _unpaired(key: FactorKey, info: TensorInfo) -> UnusedTensor:
    """A missing factor keeps its initial value in PEFT: zeros, or random for A, and for B of an embedding."""
    other = FactorKey(key.module, not key.is_down, key.is_embedding, key.has_prefix, key.adapter_name)
    is_random = key.is_down if key.is_embedding else not key.is_down
    return UnusedTensor(
        info.name,
        f"the other factor, {quoted(str(other))}, is missing",
        LoadEffect.RANDOM if is_random else LoadEffect.NONE,
        key.module,
    )


def _stored_transposed(down: tuple[int, ...], up: tuple[int, ...]) -> str:
    """Which factors must be transposed to make a LoRA: "B", "A", "A and B"; "" if that does not help.

    A is (r, inputs) and B (outputs, r), where r is at most the other side.
    """
    if not (len(down) == len(up) == 2) or down[0] == up[1] or 0 in (*down, *up):
        return ""
    if down[0] == up[0] <= down[1]:
        return "B"
    if down[1] == up[1] <= down[0]:
        return "A"
    return "A and B" if down[1] == up[0] <= min(down[0], up[1]) else ""


def transposed_reason(factors: str, down: tuple[int, ...], up: tuple[int, ...]) -> str:
    """Why PEFT refuses factors that are stored transposed."""
    verb = "are" if " " in factors else "is"
    return (
        f"{factors} {verb} stored transposed (A is {dimensions(down)} and B {dimensions(up)}), and PEFT refuses "
        "tensors of another shape"
    )


def _shape_error(down: tuple[int, ...], up: tuple[int, ...]) -> str | None:
    """Why two tensors are no factors: two matrices, or two convolutions of which the second has kernels of size 1."""
    is_pair = 2 <= len(down) == len(up) <= _MOST_DIMENSIONS and set(up[2:]) <= {1} and 0 not in (*down, *up)
    if not is_pair:
        return f"A has the shape {dimensions(down)} and B {dimensions(up)}; two non-empty matrices were expected"
    if down[0] != up[1]:
        return f"A has rank {down[0]:,} and B has rank {up[1]:,}"
    return None
