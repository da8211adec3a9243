"""An adapter on disk: its configuration, its tensors grouped into parts, and their values on demand.

Any program may have written it. The keys of tensors are PEFT's:

    base_model.model.NAME.lora_A.weight            (r, inputs)       with lora_B.weight (outputs, r)
    base_model.model.NAME.lora_B.bias              (outputs,)        `lora_bias`
    base_model.model.NAME.lora_embedding_A         (r, rows)         with lora_embedding_B (columns, r)
    base_model.model.NAME.weight, .bias            as the model's    `modules_to_save`, `bias`
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NoReturn, Self

import torch
from torch import Tensor

from deltarank.adapters.config_read import MAX_CONFIG_SIZE, LoraConfig, parse_config
from deltarank.adapters.file_names import CONFIG_FILE, WEIGHTS_FILE
from deltarank.adapters.keys import PREFIX
from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, TensorInfo, dimensions, fetch_files, open_checkpoint, quoted
from deltarank.errors import AdapterError, CheckpointError
from deltarank.results import Reference

_MAX_CACHED = 4
_MAX_BIAS_BYTES = 1 << 24
_PICKLED_WEIGHTS_FILE = "adapter_model.bin"
_NO_PREFIX = f"its name does not begin with {PREFIX}, so PEFT ignores it"


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
    is_wrapped       the tensor is inside a module that also has a LoRA (`base_layer`)
    is_parameter     the LoRA is on a bare parameter (`target_parameters`)
    expert           (index, number of experts) where all experts share A, split by rows, and B, split by columns
    rows             the rows of B that belong to this tensor, where B also covers another one (gate and up)
    """

    kind: PartKind
    module: str
    tensor: str
    up: TensorInfo
    down: TensorInfo | None = None
    is_wrapped: bool = False
    is_parameter: bool = False
    expert: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None

    @property
    def outputs(self) -> int:
        """The number of rows of B for this tensor."""
        return self.rows[1] - self.rows[0] if self.rows else self.up.shape[0]

    @property
    def is_lora(self) -> bool:
        return self.down is not None

    @property
    def rank(self) -> int:
        """The rank of the factors as stored; 0 for anything but a LoRA."""
        rows = self.down.shape[0] if self.down is not None else 0
        return rows // self.expert[1] if self.expert else rows


class LoadEffect(Enum):
    """What an unused tensor does to the rest of the adapter when PEFT (0.21) loads it."""

    NONE = "none"
    REFUSED = "refused"
    RANDOM = "random"


@dataclass(frozen=True)
class UnusedTensor:
    """A tensor of the file that changes nothing, and why.

    module       the module that PEFT would look for it on; "" if `effect` does not depend on one
    """

    name: str
    reason: str
    effect: LoadEffect = LoadEffect.NONE
    module: str = ""


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA on disk. Close it, or use it in a `with`.

    folder, commit   the folder or Hub id that it was opened by; the commit of a Hub id
    """

    config: LoraConfig
    parts: tuple[AdapterPart, ...]
    unused: tuple[UnusedTensor, ...]
    file: Checkpoint = field(repr=False)
    folder: str
    commit: str | None = None
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def reference(self) -> Reference:
        return Reference(self.folder, self.commit, dict(self.file.reference.files))

    def read(self, info: TensorInfo) -> Tensor:
        """A whole tensor of the file, as stored.

        Raises:
            CheckpointError: (slug "unreadable") the file was cut short, or cannot be read.
        """
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        if info.nbytes:
            self.file.source.read_into(info.file, info.start, raw.numpy().data)
        return raw.view(FLOAT_DTYPES[info.dtype]).view(info.shape)

    def is_padding(self, name: str) -> bool:
        """Whether a tensor is a bias of zeros: PEFT needs a bias beside all factors, if beside any."""
        info = self.file.tensors.get(name)
        if info is None or not name.endswith(_BIAS) or info.dtype not in FLOAT_DTYPES or info.nbytes > _MAX_BIAS_BYTES:
            return False
        return not self.read(info).any()

    def factors(self, part: AdapterPart) -> tuple[Tensor, Tensor]:
        """A and B of a LoRA, as stored. Those of an expert are slices of what all experts share.

        Raises:
            CheckpointError: as for `read`.
        """
        assert part.down is not None
        if part.expert is None:
            return self.read(part.down), self.read(part.up)
        index, experts = part.expert
        first = index * part.rank
        up = self._read_shared(part.up)[slice(*part.rows) if part.rows else slice(None), index::experts]
        return self._read_shared(part.down)[first : first + part.rank], up

    def _read_shared(self, info: TensorInfo) -> Tensor:
        """Experts come one after the other, so what they share is read once: the last few such tensors are cached."""
        tensor = self._cache.get(info.name)
        if tensor is None:
            tensor = self._cache[info.name] = self.read(info)
            for name in list(self._cache)[:-_MAX_CACHED]:
                self._cache.pop(name, None)
        return tensor


def open_adapter(ref: str | os.PathLike[str], *, revision: str | None = None) -> LoraAdapter:
    """Opens an adapter: reads its configuration and the header of its weights, but no tensor.

    Args:
        ref: a folder, or `org/name[@revision]` on the Hub, from which the two files are downloaded into the cache.

    Raises:
        UsageError: a revision was given for a folder, or twice.
        AdapterError: there is no adapter, or it is of a kind that is not supported.
        CheckpointError, HeaderError: the weights cannot be read, or their header is invalid.
    """
    name = os.fspath(ref)
    try:
        home, commit = fetch_files(ref, (CONFIG_FILE, WEIGHTS_FILE), revision=revision)
    except CheckpointError as error:
        if error.slug == "no-such-checkpoint":
            _raise_not_found(name, "there is no such folder")
        raise
    name = name.removeprefix("hf://").partition("@")[0] if commit else name
    config = parse_config(_read_config(home, name))
    if not (home / WEIGHTS_FILE).is_file():
        _raise_no_weights(home, name)
    file = open_checkpoint(home / WEIGHTS_FILE)
    try:
        parts, unused = _group(file.tensors)
    except BaseException:
        file.close()
        raise
    return LoraAdapter(config, parts, unused, file, name, commit)


def _read_config(home: Path, name: str) -> bytes:
    try:
        with (home / CONFIG_FILE).open("rb") as file:
            return file.read(
                min(os.fstat(file.fileno()).st_size, MAX_CONFIG_SIZE) + 1
            )  # read() allocates what it is asked for
    except OSError as error:
        _raise_not_found(name, f"{CONFIG_FILE} cannot be read ({error.strerror or error})")


def _raise_no_weights(home: Path, name: str) -> NoReturn:
    if (home / _PICKLED_WEIGHTS_FILE).is_file():
        raise AdapterError(
            f"{_PICKLED_WEIGHTS_FILE} in {name!a} is a pickle, which can run arbitrary code; it was not opened.",
            cure="If you trust it, load it with PEFT and save it with `save_pretrained`, which writes safetensors.",
            slug="pickled-weights",
        )
    _raise_not_found(name, f"it has no {WEIGHTS_FILE}")


def _raise_not_found(name: str, reason: str) -> NoReturn:
    raise AdapterError(
        f"There is no adapter in {name!a}: {reason}.",
        cure=f"Give a folder or Hub id with {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT's `save_pretrained` writes them.",
        slug="adapter-not-found",
    ) from None


_FACTORS = (
    (PartKind.LINEAR, ".lora_A.weight", ".lora_B.weight"),
    (PartKind.EMBEDDING, ".lora_embedding_A", ".lora_embedding_B"),
)
_BIAS = ".lora_B.bias"
_OTHER_METHODS = (".lora_", ".token_adapter.")
_BASE_LAYER = ".base_layer."


def _group(tensors: Mapping[str, TensorInfo]) -> tuple[tuple[AdapterPart, ...], tuple[UnusedTensor, ...]]:
    entries = list(_interpret_keys(tensors))
    parts = tuple(entry for entry in entries if isinstance(entry, AdapterPart))
    return parts, tuple(entry for entry in entries if isinstance(entry, UnusedTensor))


def _interpret_keys(tensors: Mapping[str, TensorInfo]) -> Iterator[AdapterPart | UnusedTensor]:
    """Each tensor belongs to one part, or is unused."""
    for key, info in tensors.items():
        if info.dtype not in FLOAT_DTYPES:
            yield UnusedTensor(key, f"stored as {info.dtype!a}, which is not a floating-point type")
        elif not key.startswith(PREFIX):
            yield UnusedTensor(key, _NO_PREFIX)
        elif (factor := _parse_factor(key)) is not None:
            yield from _pair_factors(key, *factor, tensors)
        elif key.endswith(_BIAS):
            module = key[len(PREFIX) : -len(_BIAS)]
            yield AdapterPart(PartKind.BIAS, module, f"{module}.bias", info)
        elif any(mark in key for mark in _OTHER_METHODS):
            yield UnusedTensor(key, "it is not a factor of a plain LoRA")
        else:
            name = key[len(PREFIX) :].replace(_BASE_LAYER, ".")
            yield AdapterPart(PartKind.WHOLE, name.rsplit(".", 1)[0], name, info, is_wrapped=_BASE_LAYER in key)


def _parse_factor(key: str) -> tuple[PartKind, str, str] | None:
    """The kind of part, the module, and the key of the other factor; None for a key of another form."""
    for kind, down, up in _FACTORS:
        for ours, other in ((down, up), (up, down)):
            if key.endswith(ours):
                stem = key[: -len(ours)]
                return kind, stem[len(PREFIX) :], stem + other
    return None


def _pair_factors(
    key: str, kind: PartKind, module: str, other: str, tensors: Mapping[str, TensorInfo]
) -> Iterator[AdapterPart | UnusedTensor]:
    """The part that a pair of factors makes, yielded once, at the key of A; or an unused tensor."""
    partner = tensors.get(other)
    if partner is None or partner.dtype not in FLOAT_DTYPES:
        yield _unpaired(key, kind, module, other)
        return
    is_down = "_A" in key[len(PREFIX) + len(module) :]
    down, up = (tensors[key], partner) if is_down else (partner, tensors[key])
    if (reason := _shape_error(down.shape, up.shape)) is not None:
        yield UnusedTensor(key, reason, LoadEffect.REFUSED, module)
    elif is_down:
        yield AdapterPart(kind, module, f"{module}.weight", up, down)


def _unpaired(key: str, kind: PartKind, module: str, other: str) -> UnusedTensor:
    """A missing factor keeps its initial value in PEFT: zeros, or random for A, and for B of an embedding."""
    is_random = "_A" in other[len(PREFIX) + len(module) :] if kind is PartKind.LINEAR else "embedding_B" in other
    return UnusedTensor(
        key,
        f"the other factor, {quoted(other)}, is missing",
        LoadEffect.RANDOM if is_random else LoadEffect.NONE,
        module,
    )


def _shape_error(down: tuple[int, ...], up: tuple[int, ...]) -> str | None:
    if len(down) != 2 or len(up) != 2 or 0 in (*down, *up):
        return f"A has the shape {dimensions(down)} and B {dimensions(up)}; two non-empty matrices were expected"
    if down[0] != up[1]:
        return f"A has rank {down[0]:,} and B has rank {up[1]:,}"
    return None
