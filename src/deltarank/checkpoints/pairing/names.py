"""What a tensor's name says: its layer, its module, and whether it is an embedding or output head."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from deltarank.checkpoints.formats.safetensors_header import TensorInfo

WRAPPERS = frozenset(
    {"model", "language_model", "text_model", "base_model", "transformer", "module", "llm", "backbone", "gpt_neox"}
    | {"thinker", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
"""Prefixes that a training framework or a larger model puts before the names of a language model."""

INNER_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Wrappers that may also appear inside a name."""

_LISTS = frozenset(
    {"layers", "layer", "h", "blocks", "block", "resblocks", "transformer_blocks", "single_transformer_blocks"}
    | {"encoder_layers", "decoder_layers"}
)
# A list of another name with this many members counts as a stack of layers; shorter ones are often the parts of one
# module (nn.Sequential).
_MIN_LAYERS = 4
_MAX_DIGITS = 6
_MAX_PARTS = 32  # A name can have a million dots; the number of a layer is near its beginning.
# A stack with this share of all numbers is the model; its modules get no prefix.
_MAIN_SHARE = 2 / 3

_EXPERTS = re.compile(r"experts?$")
_INPUT = re.compile(r"embed_tokens|wte|tok_embeddings|embed_in|word_embeddings|shared|embedding|embeddings")
_HEAD = re.compile(r"lm_head|embed_out|output|output_layer|head")
_EMBEDDING = re.compile(r"wpe|embed\w*|\w*embeddings?|\w*_embed")


class VocabularyRole(Enum):
    """A token embedding, an output head, or another embedding that is looked up by row."""

    INPUT = "input"
    HEAD = "head"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a tensor is in its model. `layer` is None outside the stacks of layers."""

    layer: int | None
    module: str
    vocabulary: VocabularyRole | None

    @property
    def is_bias(self) -> bool:
        """Biases of fused experts are stored as a matrix, which is not a weight matrix."""
        return self.module.rsplit(".", 1)[-1].endswith("bias")


class TensorLocator:
    """Locates the tensors of one checkpoint. Which numbers are layers follows from all names together."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._long_lists = _long_lists(tensors)
        sizes: Counter[tuple[str, ...]] = Counter()
        for name, info in tensors.items():
            parts = name.split(".")
            index = self._layer_index(parts)
            if index is not None and len(info.shape) > 1:
                sizes[tuple(parts[:index])] += math.prod(info.shape)
        self._main = _main_stack(sizes)

    def locate(self, name: str) -> Location:
        """ "model.layers.17.mlp.down_proj.weight" -> layer 17, module "mlp.down_proj"."""
        parts = name.split(".")
        index = self._layer_index(parts)
        if index is None:
            module = _module(strip_wrappers(parts))
            return Location(None, module, _vocabulary(module))
        stack = tuple(parts[:index])
        prefix = [] if stack == self._main else strip_wrappers(stack[:-1])
        return Location(int(parts[index]), _module([*prefix, *parts[index + 1 :]]), None)

    def _layer_index(self, parts: Sequence[str]) -> int | None:
        """The index of the layer's number: after the first name of a list of layers, else in the first long list."""
        numbers = [i for i, part in enumerate(parts[:_MAX_PARTS]) if i and _is_number(part)]
        for i in numbers:
            if parts[i - 1] in _LISTS:
                return i
        for i in numbers:
            if tuple(parts[:i]) in self._long_lists:
                return i
        return None


def strip_wrappers(parts: Sequence[str]) -> list[str]:
    """The parts after the leading wrappers; none if all are wrappers."""
    rest = list(parts[wrapper_count(parts) :])
    return [] if rest and rest[0] in WRAPPERS else rest


def wrapper_count(parts: Sequence[str]) -> int:
    """How many leading parts are wrappers; the last part does not count."""
    return next((i for i, part in enumerate(parts[:-1]) if part not in WRAPPERS), max(len(parts) - 1, 0))


def _is_number(part: str) -> bool:
    return part.isdecimal() and part.isascii() and len(part) <= _MAX_DIGITS


def _long_lists(names: Iterable[str]) -> frozenset[tuple[str, ...]]:
    members: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        parts = name.split(".")
        index = next((i for i, part in enumerate(parts[:_MAX_PARTS]) if i and _is_number(part)), None)
        if index is not None and not _EXPERTS.search(parts[index - 1]):
            members.setdefault(tuple(parts[:index]), set()).add(parts[index])
    return frozenset(stack for stack, numbers in members.items() if len(numbers) >= _MIN_LAYERS)


def _main_stack(sizes: Counter[tuple[str, ...]]) -> tuple[str, ...] | None:
    if not sizes:
        return None
    stack, size = sizes.most_common(1)[0]
    return stack if size >= _MAIN_SHARE * sizes.total() else None


def _module(parts: Sequence[str]) -> str:
    """The name without the number of an expert and without ".weight", unless that is all of it."""
    kept = [
        part
        for i, part in enumerate(parts)
        if part not in INNER_WRAPPERS and not (i and _is_number(part) and _EXPERTS.search(parts[i - 1]))
    ]
    if len(kept) > 1 and kept[-1] == "weight":
        kept.pop()
    return ".".join(kept) or "weight"


def _vocabulary(module: str) -> VocabularyRole | None:
    leaf = module.rsplit(".", 1)[-1]
    if leaf == "lm_head" or (leaf == module and _HEAD.fullmatch(leaf)):
        return VocabularyRole.HEAD
    if _INPUT.fullmatch(leaf):
        return VocabularyRole.INPUT
    return VocabularyRole.OTHER if _EMBEDDING.fullmatch(leaf) else None
