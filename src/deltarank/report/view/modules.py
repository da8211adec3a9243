"""Modules by name: which are attention, which are MLP, in what order, and how each is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from deltarank.report.view.text import clean, short


class Group(StrEnum):
    """The article draws attention and MLP apart; whatever is neither gets a chart of its own."""

    MLP = "mlp"
    ATTENTION = "attention"
    OTHER = "other"

    @property
    def heading(self) -> str:
        return {Group.MLP: "MLP", Group.ATTENTION: "Attention", Group.OTHER: "UnfactoredTensor modules"}[self]


_ROOMS = (
    (Group.ATTENTION, re.compile(r"attn|attention")),
    (Group.MLP, re.compile(r"mlp|feed_?forward|ffn|expert|moe|intermediate")),
)
# In the order in which the parts of a block are used.
_ATTENTION_PARTS = ("q", "wq", "query", "k", "wk", "key", "v", "wv", "value", "qkv", "c_attn", "o", "wo", "out")
_MLP_PARTS = ("router", "gate", "w1", "up", "w3", "fc", "fc1", "c_fc", "down", "w2", "fc2")
_ORDER = (*_ATTENTION_PARTS, "dense", "c_proj", *_MLP_PARTS)

STYLES_PER_GROUP: Mapping[Group, int] = {Group.ATTENTION: 4, Group.MLP: 4, Group.OTHER: 1}


@dataclass(frozen=True)
class Module:
    """A module of the page. `style` numbers its colour, dash and shape; None is drawn grey."""

    name: str
    label: str
    short: str
    group: Group
    style: int | None


def group_of(module: str) -> Group:
    """Attention, MLP or neither, by the names in use: "self_attn.o_proj" -> attention, "mlp.c_proj" -> MLP.

    The first part of the name that says it wins, so "mlp.attn_gate" is MLP.
    """
    parts = module.lower().split(".")
    for part in parts:
        for group, pattern in _ROOMS:
            if pattern.search(part):
                return group
    leaf = _leaf(module)
    if leaf in _ATTENTION_PARTS:
        return Group.ATTENTION
    return Group.MLP if leaf in _MLP_PARTS or leaf.startswith("dense_") else Group.OTHER


def _leaf(module: str) -> str:
    return module.lower().rsplit(".", 1)[-1].removesuffix("_proj").removesuffix("_lin")


def _place(module: str) -> tuple[int, int, str]:
    leaf = _leaf(module)
    whole = module.lower().rsplit(".", 1)[-1]
    known = leaf if leaf in _ORDER else whole
    place = _ORDER.index(known) if known in _ORDER else len(_ORDER)
    return ([Group.ATTENTION, Group.MLP, Group.OTHER].index(group_of(module)), place, module)


def arrange(energies: Mapping[str, float]) -> tuple[Module, ...]:
    """The modules in reading order. Colours go to those of a group that hold most of the change."""
    names = sorted(energies, key=_place)
    styles = _styles(names, energies)
    labels = _unique_labels([short(clean(name), most=36) for name in names])
    tails = _tails(labels)
    return tuple(
        Module(name, label, tail, group_of(name), styles.get(name))
        for name, label, tail in zip(names, labels, tails, strict=True)
    )


def _styles(names: list[str], energies: Mapping[str, float]) -> dict[str, int]:
    styles: dict[str, int] = {}
    first = 0
    for group, room in STYLES_PER_GROUP.items():
        members = [name for name in names if group_of(name) is group]
        chosen = set(sorted(members, key=lambda name: -energies[name])[:room])
        styles.update({name: first + i for i, name in enumerate(n for n in members if n in chosen)})
        first += room
    return styles


def _unique_labels(labels: Iterable[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        result.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return result


def _tails(labels: list[str]) -> list[str]:
    """The last part of each label where that is enough to tell them apart."""
    tails = [label.rsplit(".", 1)[-1] for label in labels]
    return [tail if tails.count(tail) == 1 and tail else label for tail, label in zip(tails, labels, strict=True)]
