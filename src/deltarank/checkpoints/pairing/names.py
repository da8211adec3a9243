"""What a tensor's name says: its layer, its module, and whether it is an embedding or output head."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.tensor_names import EMBEDDING, LM_HEAD, POSITION, kind_of_tensor, strip_inner_wrappers, strip_wrappers

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
# Of the embeddings, those of a model's tokens.
_INPUT = re.compile(
    r"embed_tokens|wte|tok_embeddings|embed_in|word_embeddings|shared|embedding|embeddings|tokens_embed"
)


class VocabularyRole(Enum):
    """A token embedding, an output head, or another embedding that is looked up by row."""

    INPUT = "input"
    HEAD = "head"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a tensor is in its model, and its `kind_of_tensor`. `layer` is None outside the stacks of layers."""

    layer: int | None
    module: str
    vocabulary: VocabularyRole | None
    kind: str | None


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
        parts, kind = name.split("."), kind_of_tensor(name)
        index = self._layer_index(parts)
        if index is None:
            module = _module(strip_wrappers(parts))
            return Location(None, module, _vocabulary(kind, module), kind)
        stack = tuple(parts[:index])
        prefix = [] if stack == self._main else strip_wrappers(stack[:-1])
        # Layers for multi-token prediction hold copies of the vocabulary, which are not the model's own.
        copy = VocabularyRole.OTHER if kind in (EMBEDDING, POSITION, LM_HEAD) else None
        return Location(int(parts[index]), _module([*prefix, *parts[index + 1 :]]), copy, kind)

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


def locate_all(tensors: Mapping[str, TensorInfo]) -> dict[str, Location]:
    locator = TensorLocator(tensors)
    return {name: locator.locate(name) for name in tensors}


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
    parts = strip_inner_wrappers(parts)
    kept = [part for i, part in enumerate(parts) if not (i and _is_number(part) and _EXPERTS.search(parts[i - 1]))]
    if len(kept) > 1 and kept[-1] == "weight":
        kept.pop()
    return ".".join(kept) or "weight"


def _vocabulary(kind: str | None, module: str) -> VocabularyRole | None:
    if kind == LM_HEAD:
        return VocabularyRole.HEAD
    if kind == EMBEDDING and _INPUT.fullmatch(module.rsplit(".", 1)[-1]):
        return VocabularyRole.INPUT
    return VocabularyRole.OTHER if kind in (EMBEDDING, POSITION) else None
