"""The modules of a page: which are attention or MLP, their order, and how each is drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from deltarank.report.view.text import label, unique_labels


class ModuleGroup(StrEnum):
    """The groups that are drawn apart, as in the article, and one for all other modules."""

    MLP = "mlp"
    ATTENTION = "attention"
    OTHER = "other"

    @property
    def heading(self) -> str:
        return {ModuleGroup.MLP: "MLP", ModuleGroup.ATTENTION: "Attention", ModuleGroup.OTHER: "Other modules"}[self]


_GROUP_PATTERNS = (
    (ModuleGroup.ATTENTION, re.compile(r"attn|attention")),
    (ModuleGroup.MLP, re.compile(r"mlp|feed_?forward|ffn|expert|moe|intermediate")),
)
# In the order in which a block uses them.
_ATTENTION_PARTS = ("q", "wq", "query", "k", "wk", "key", "v", "wv", "value", "qkv", "c_attn", "o", "wo", "out")
_MLP_PARTS = ("router", "gate", "w1", "up", "w3", "fc", "fc1", "c_fc", "down", "w2", "fc2")
_ORDER = (*_ATTENTION_PARTS, "dense", "c_proj", *_MLP_PARTS)

STYLES_PER_GROUP: Mapping[ModuleGroup, int] = {ModuleGroup.ATTENTION: 4, ModuleGroup.MLP: 4, ModuleGroup.OTHER: 1}


@dataclass(frozen=True)
class Module:
    """A module of the page. `style` numbers its colour, dash and shape; None is drawn in grey."""

    name: str
    label: str
    short_label: str
    group: ModuleGroup
    style: int | None


def group_of(module: str) -> ModuleGroup:
    """Attention, MLP or neither, by common names: "self_attn.o_proj" -> attention, "mlp.c_proj" -> MLP.

    The first part of the name that matches decides, so "mlp.attn_gate" is MLP.
    """
    parts = module.lower().split(".")
    for part in parts:
        for group, pattern in _GROUP_PATTERNS:
            if pattern.search(part):
                return group
    leaf = _leaf(module)
    if leaf in _ATTENTION_PARTS:
        return ModuleGroup.ATTENTION
    return ModuleGroup.MLP if leaf in _MLP_PARTS or leaf.startswith("dense_") else ModuleGroup.OTHER


def _leaf(module: str) -> str:
    return module.lower().rsplit(".", 1)[-1].removesuffix("_proj").removesuffix("_lin")


def _sort_key(module: str) -> tuple[int, int, str]:
    leaf = _leaf(module)
    part = leaf if leaf in _ORDER else module.lower().rsplit(".", 1)[-1]
    position = _ORDER.index(part) if part in _ORDER else len(_ORDER)
    return ([ModuleGroup.ATTENTION, ModuleGroup.MLP, ModuleGroup.OTHER].index(group_of(module)), position, module)


def arrange_modules(energies: Mapping[str, float]) -> tuple[Module, ...]:
    """The modules in reading order. Those of each group that hold most of the change get a colour."""
    names = sorted(energies, key=_sort_key)
    styles = _styles(names, energies)
    labels = unique_labels(map(label, names))
    return tuple(
        Module(name, full, tail, group_of(name), styles.get(name))
        for name, full, tail in zip(names, labels, _short_labels(labels), strict=True)
    )


def _styles(names: list[str], energies: Mapping[str, float]) -> dict[str, int]:
    styles: dict[str, int] = {}
    first = 0
    for group, most in STYLES_PER_GROUP.items():
        members = [name for name in names if group_of(name) is group]
        largest = set(sorted(members, key=lambda name: -energies[name])[:most])
        styles.update({name: first + i for i, name in enumerate(n for n in members if n in largest)})
        first += most
    return styles


def _short_labels(labels: list[str]) -> list[str]:
    """The last part of each label where no other label has the same."""
    tails = [text.rsplit(".", 1)[-1] for text in labels]
    return [tail if tails.count(tail) == 1 and tail else text for tail, text in zip(tails, labels, strict=True)]
