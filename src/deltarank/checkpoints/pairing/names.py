"""What a tensor's name says: its layer, its module, and whether it belongs to the vocabulary."""

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
"""Parts that a training framework or a larger model puts before the names of a language model."""

TECHNICAL = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Wrappers that may also stand inside a name."""

_LISTS = frozenset(
    {"layers", "layer", "h", "blocks", "block", "resblocks", "transformer_blocks", "single_transformer_blocks"}
    | {"encoder_layers", "decoder_layers"}
)
# A list of another name counts as a stack of layers from this many members on: shorter ones are often the parts of
# one module (nn.Sequential).
_FEWEST_LAYERS = 4
_MOST_DIGITS = 6
_MOST_PARTS = 32  # A name can have a million dots; a layer's number stands near its front.
# A stack with this share of all numbers is "the model"; its modules carry no label.
_MAIN_SHARE = 2 / 3

_EXPERTS = re.compile(r"experts?$")
_INPUT = re.compile(r"embed_tokens|wte|tok_embeddings|embed_in|word_embeddings|shared|embedding|embeddings")
_HEAD = re.compile(r"lm_head|embed_out|output|output_layer|head")
_EMBEDDING = re.compile(r"wpe|embed\w*|\w*embeddings?|\w*_embed")


class Vocabulary(Enum):
    """What part of a vocabulary a matrix is: words in, words out, or another table that is looked up by row."""

    INPUT = "input"
    HEAD = "head"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands in its model. `layer` is None outside of the stacks of layers."""

    layer: int | None
    module: str
    vocabulary: Vocabulary | None

    @property
    def is_bias(self) -> bool:
        """Biases of fused experts are stored as one matrix, which is not a matrix of the model."""
        return self.module.rsplit(".", 1)[-1].endswith("bias")


class Namer:
    """Places the tensors of one checkpoint. Which numbers are layers is learnt from all names together."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._long_lists = _long_lists(tensors)
        sizes: Counter[tuple[str, ...]] = Counter()
        for name, info in tensors.items():
            parts = name.split(".")
            at = self._layer_at(parts)
            if at is not None and len(info.shape) > 1:
                sizes[tuple(parts[:at])] += math.prod(info.shape)
        self._main = _main_stack(sizes)

    def place(self, name: str) -> Place:
        """ "model.layers.17.mlp.down_proj.weight" -> layer 17, module "mlp.down_proj"."""
        parts = name.split(".")
        at = self._layer_at(parts)
        if at is None:
            module = _module(strip_wrappers(parts))
            return Place(None, module, _vocabulary(module))
        stack = tuple(parts[:at])
        label = [] if stack == self._main else strip_wrappers(stack[:-1])
        return Place(int(parts[at]), _module([*label, *parts[at + 1 :]]), None)

    def _layer_at(self, parts: Sequence[str]) -> int | None:
        """The position of the layer's number: behind the first word for a list, else in the first long list."""
        numbers = [i for i, part in enumerate(parts[:_MOST_PARTS]) if i and _is_number(part)]
        for i in numbers:
            if parts[i - 1] in _LISTS:
                return i
        for i in numbers:
            if tuple(parts[:i]) in self._long_lists:
                return i
        return None


def strip_wrappers(parts: Sequence[str]) -> list[str]:
    """The parts after the leading wrappers; the last part is never one."""
    first = 0
    while first < len(parts) - 1 and parts[first] in WRAPPERS:
        first += 1
    rest = list(parts[first:])
    return [] if rest and rest[0] in WRAPPERS else rest


def _is_number(part: str) -> bool:
    return part.isdecimal() and part.isascii() and len(part) <= _MOST_DIGITS


def _long_lists(names: Iterable[str]) -> frozenset[tuple[str, ...]]:
    members: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts[:_MOST_PARTS]) if i and _is_number(part)), None)
        if at is not None and not _EXPERTS.search(parts[at - 1]):
            members.setdefault(tuple(parts[:at]), set()).add(parts[at])
    return frozenset(stack for stack, numbers in members.items() if len(numbers) >= _FEWEST_LAYERS)


def _main_stack(sizes: Counter[tuple[str, ...]]) -> tuple[str, ...] | None:
    if not sizes:
        return None
    stack, size = sizes.most_common(1)[0]
    return stack if size >= _MAIN_SHARE * sizes.total() else None


def _module(parts: Sequence[str]) -> str:
    """Without the number of an expert, without ".weight"; a name that is nothing else stays."""
    kept = [
        part
        for i, part in enumerate(parts)
        if part not in TECHNICAL and not (i and _is_number(part) and _EXPERTS.search(parts[i - 1]))
    ]
    if len(kept) > 1 and kept[-1] == "weight":
        kept.pop()
    return ".".join(kept) or "weight"


def _vocabulary(module: str) -> Vocabulary | None:
    leaf = module.rsplit(".", 1)[-1]
    if leaf == "lm_head" or (leaf == module and _HEAD.fullmatch(leaf)):
        return Vocabulary.HEAD
    if _INPUT.fullmatch(leaf):
        return Vocabulary.INPUT
    return Vocabulary.OTHER if _EMBEDDING.fullmatch(leaf) else None
