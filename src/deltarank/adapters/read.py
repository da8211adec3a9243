"""An adapter's folder as it lies on disk: its configuration, its tensors sorted into parts, and its numbers on demand.

Nothing here knows who wrote it. Keys are PEFT's:

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

from deltarank.adapters.config_read import MAX_CONFIG, LoraConfig, parse_config
from deltarank.adapters.file_names import CONFIG_FILE, WEIGHTS_FILE
from deltarank.adapters.keys import PREFIX
from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, TensorInfo, fetch_files, open_checkpoint
from deltarank.errors import AdapterError, CheckpointError
from deltarank.results import Reference

_MOST_KEPT = 4
_LONGEST_BIAS = 1 << 24
_PICKLED = "adapter_model.bin"
_NO_PREFIX = f"its name does not begin with {PREFIX}, so PEFT passes it over"


class PartKind(Enum):
    """What a part of an adapter does to a tensor of the base."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    BIAS = "bias"
    WHOLE = "whole"


@dataclass(frozen=True)
class AdapterPart:
    """One change to one tensor of the base.

    tensor           the name of that tensor as the adapter has it: "model.layers.0.mlp.up_proj.weight"
    down, up         A and B of a LoRA; of a bias or a whole tensor, `up` alone
    wrapped          the tensor lies inside a module that has a LoRA (`base_layer`)
    bare             of a LoRA that PEFT puts on a parameter (`target_parameters`); `module` is then the parameter
    rows             of B, where it is meant for a part of what B makes: for the gate of gate and up
    slot             (number, how many): the factors are those of one of so many experts, A by rows and B by columns
    """

    kind: PartKind
    module: str
    tensor: str
    up: TensorInfo
    down: TensorInfo | None = None
    wrapped: bool = False
    bare: bool = False
    slot: tuple[int, int] | None = None
    rows: tuple[int, int] | None = None

    @property
    def outputs(self) -> int:
        """Of B."""
        return self.rows[1] - self.rows[0] if self.rows else self.up.shape[0]

    @property
    def is_lora(self) -> bool:
        return self.down is not None

    @property
    def rank(self) -> int:
        """Of the factors as stored; 0 of anything but a LoRA."""
        rows = self.down.shape[0] if self.down is not None else 0
        return rows // self.slot[1] if self.slot else rows


class LoadEffect(Enum):
    """What a tensor that fits nothing does to the rest, as PEFT (0.21) loads it."""

    NONE = "none"
    REFUSED = "refused"
    RANDOM = "random"


@dataclass(frozen=True)
class UnusedTensor:
    """A tensor (or what should be one) that adds nothing of its own, and why.

    module       that PEFT would look for it on, if there is one to do effect to
    """

    name: str
    reason: str
    effect: LoadEffect = LoadEffect.NONE
    module: str = ""


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA on disk. Close it, or use it in a `with`.

    folder, commit   what it was asked for by; the commit of a Hub id
    """

    config: LoraConfig
    parts: tuple[AdapterPart, ...]
    unused: tuple[UnusedTensor, ...]
    file: Checkpoint = field(repr=False)
    folder: str
    commit: str | None = None
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def reference(self) -> Reference:
        return Reference(self.folder, self.commit, dict(self.file.reference.files))

    def numbers(self, info: TensorInfo) -> Tensor:
        """A tensor of the file, whole, as stored.

        Raises:
            CheckpointError: (slug "unreadable") the file became shorter, or cannot be read.
        """
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        if info.nbytes:
            self.file.source.read_into(info.file, info.start, raw.numpy().data)
        return raw.view(FLOAT_DTYPES[info.dtype]).view(info.shape)

    def is_padding(self, name: str) -> bool:
        """Whether a tensor is a bias of zeros: PEFT wants one beside all factors, if beside any."""
        info = self.file.tensors.get(name)
        if info is None or not name.endswith(_BIAS) or info.dtype not in FLOAT_DTYPES or info.nbytes > _LONGEST_BIAS:
            return False
        return not self.numbers(info).any()

    def factors(self, part: AdapterPart) -> tuple[Tensor, Tensor]:
        """A and B of a LoRA, as stored. Those of an expert are a part of what all of them share.

        Raises:
            CheckpointError: as `numbers`.
        """
        assert part.down is not None
        if part.slot is None:
            return self.numbers(part.down), self.numbers(part.up)
        number, experts = part.slot
        first = number * part.rank
        up = self._shared(part.up)[slice(*part.rows) if part.rows else slice(None), number::experts]
        return self._shared(part.down)[first : first + part.rank], up

    def _shared(self, info: TensorInfo) -> Tensor:
        """Experts come one after the other: what they share is read once, and the last few such tensors are kept."""
        found = self._kept.get(info.name)
        if found is None:
            found = self._kept[info.name] = self.numbers(info)
            for name in list(self._kept)[:-_MOST_KEPT]:
                self._kept.pop(name, None)
        return found


def open_adapter(ref: str | os.PathLike[str], *, revision: str | None = None) -> LoraAdapter:
    """Reads the configuration and the header; no tensor.

    Args:
        ref: a folder, or `org/name[@revision]` on the Hub, of which these two files are downloaded into the cache.

    Raises:
        UsageError: a revision that cannot apply.
        AdapterError: there is none, or it is of a kind that is not read.
        CheckpointError, HeaderError: its file cannot be read, or is not to be trusted.
    """
    named = os.fspath(ref)
    try:
        home, commit = fetch_files(ref, (CONFIG_FILE, WEIGHTS_FILE), revision=revision)
    except CheckpointError as error:
        if error.slug == "no-such-checkpoint":
            _refuse_without(named, "there is no such folder")
        raise
    named = named.removeprefix("hf://").partition("@")[0] if commit else named
    config = parse_config(_config_of(home, named))
    if not (home / WEIGHTS_FILE).is_file():
        _refuse_without_weights(home, named)
    file = open_checkpoint(home / WEIGHTS_FILE)
    try:
        parts, unused = _sorted_out(file.tensors)
    except BaseException:
        file.close()
        raise
    return LoraAdapter(config, parts, unused, file, named, commit)


def _config_of(home: Path, named: str) -> bytes:
    try:
        with (home / CONFIG_FILE).open("rb") as file:
            return file.read(min(os.fstat(file.fileno()).st_size, MAX_CONFIG) + 1)  # what is asked for is allocated
    except OSError as error:
        _refuse_without(named, f"{CONFIG_FILE} cannot be read ({error.strerror or error})")


def _refuse_without_weights(home: Path, named: str) -> NoReturn:
    if (home / _PICKLED).is_file():
        raise AdapterError(
            f"{_PICKLED} in {named!a} is pickled. Opening it can run a hidden program, so it was not opened.",
            cure="Load it with PEFT on a machine that trusts it, and `save_pretrained` it: that writes safetensors.",
            slug="pickled-weights",
        )
    _refuse_without(named, f"it has no {WEIGHTS_FILE}")


def _refuse_without(named: str, why: str) -> NoReturn:
    raise AdapterError(
        f"There is no adapter in {named!a}: {why}.",
        cure=f"Give a folder or Hub id with {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT's `save_pretrained` writes them.",
        slug="adapter-not-found",
    ) from None


_FACTORS = (
    (PartKind.LINEAR, ".lora_A.weight", ".lora_B.weight"),
    (PartKind.EMBEDDING, ".lora_embedding_A", ".lora_embedding_B"),
)
_BIAS = ".lora_B.bias"
_FOREIGN = (".lora_", ".token_adapter.")
_INNER = ".base_layer."


def _sorted_out(tensors: Mapping[str, TensorInfo]) -> tuple[tuple[AdapterPart, ...], tuple[UnusedTensor, ...]]:
    found = list(_read_keys(tensors))
    return tuple(x for x in found if isinstance(x, AdapterPart)), tuple(x for x in found if isinstance(x, UnusedTensor))


def _read_keys(tensors: Mapping[str, TensorInfo]) -> Iterator[AdapterPart | UnusedTensor]:
    """Each tensor ends in one part, or is a entry."""
    for key, info in tensors.items():
        if info.dtype not in FLOAT_DTYPES:
            yield UnusedTensor(key, f"stored as {info.dtype!a}, which holds no plain numbers")
        elif not key.startswith(PREFIX):
            yield UnusedTensor(key, _NO_PREFIX)
        elif (pair := _factor(key)) is not None:
            yield from _joined(key, *pair, tensors)
        elif key.endswith(_BIAS):
            module = key[len(PREFIX) : -len(_BIAS)]
            yield AdapterPart(PartKind.BIAS, module, f"{module}.bias", info)
        elif any(mark in key for mark in _FOREIGN):
            yield UnusedTensor(key, "no factor that PEFT's plain LoRA has")
        else:
            name = key[len(PREFIX) :].replace(_INNER, ".")
            yield AdapterPart(PartKind.WHOLE, name.rsplit(".", 1)[0], name, info, wrapped=_INNER in key)


def _factor(key: str) -> tuple[PartKind, str, str] | None:
    """The kind, the module, and the key of the other factor."""
    for kind, down, up in _FACTORS:
        for ours, other in ((down, up), (up, down)):
            if key.endswith(ours):
                stem = key[: -len(ours)]
                return kind, stem[len(PREFIX) :], stem + other
    return None


def _joined(
    key: str, kind: PartKind, module: str, other: str, tensors: Mapping[str, TensorInfo]
) -> Iterator[AdapterPart | UnusedTensor]:
    """A pair of factors, told once, at its A; or half of one."""
    partner = tensors.get(other)
    if partner is None or partner.dtype not in FLOAT_DTYPES:
        yield _half(key, kind, module, other)
        return
    is_down = "_A" in key[len(PREFIX) + len(module) :]
    down, up = (tensors[key], partner) if is_down else (partner, tensors[key])
    if (reason := _misshapen(down.shape, up.shape)) is not None:
        yield UnusedTensor(key, reason, LoadEffect.REFUSED, module)
    elif is_down:
        yield AdapterPart(kind, module, f"{module}.weight", up, down)


def _half(key: str, kind: PartKind, module: str, other: str) -> UnusedTensor:
    """PEFT begins with one factor of zeros and one that is random: A, or B of an embedding."""
    is_random = "_A" in other[len(PREFIX) + len(module) :] if kind is PartKind.LINEAR else "embedding_B" in other
    return UnusedTensor(
        key,
        f"its other half, {ascii(other)[1:-1]}, is missing",
        LoadEffect.RANDOM if is_random else LoadEffect.NONE,
        module,
    )


def _misshapen(down: tuple[int, ...], up: tuple[int, ...]) -> str | None:
    if len(down) != 2 or len(up) != 2 or 0 in (*down, *up):
        return f"A is {_sides(down)} and B {_sides(up)}: two matrices are wanted"
    if down[0] != up[1]:
        return f"A is of rank {down[0]:,} and B of rank {up[1]:,}"
    return None


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
