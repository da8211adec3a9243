"""Shows a finetune in the layout of its base: projections fused or split as there, and under the base's names.

A LoRA is loaded on the base, so the base decides which matrices there are. Nothing is copied: a `RowView` reads rows of
the stored tensors in another order. A tensor is shown so only if the configurations and all shapes agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.attention_heads import Heads, fused_order, inverse, rotary_order
from deltarank.checkpoints.pairing.conventions import Convention, convention_of
from deltarank.checkpoints.pairing.name_matches import core_name
from deltarank.checkpoints.rearranged import RearrangedSource, RowView
from deltarank.results import count

_FUSED_ATTENTION = ("qkv_proj", "W_pack", "wqkv", "Wqkv", "query_key_value", "qkv", "to_qkv", "c_attn", "att_proj")
_SPLIT_ATTENTION = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
)
_FUSED_ON_ONE_SIDE = "is fused on one side only"
_GATE_UP = ("gate_up_proj", ("gate_proj", "up_proj"))
_TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


def in_layout_of(base: Checkpoint, finetune: Checkpoint) -> Checkpoint:
    """The finetune with the tensors that the base stores in another layout shown as the base has them."""
    if base.tensors.keys() == finetune.tensors.keys():
        return finetune
    arrangement = _Arrangement(_Side.of(base), _Side.of(finetune))
    arrangement.rename()
    arrangement.fuse_and_split()
    return arrangement.checkpoint()


@dataclass(frozen=True)
class _Side:
    """One checkpoint, its tensors by their names in transformers without wrappers."""

    checkpoint: Checkpoint
    convention: Convention | None
    names: Mapping[str, str]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Side:
        convention = convention_of(checkpoint.tensors)
        names: dict[str, list[str]] = {}
        for name in checkpoint.tensors:
            core = core_name(name)
            names.setdefault(convention.translate(core) if convention else core, []).append(name)
        return cls(checkpoint, convention, {key: same[0] for key, same in names.items() if len(same) == 1})

    @property
    def is_interleaved(self) -> bool:
        return self.convention is not None and self.convention.is_interleaved

    def info(self, key: str) -> TensorInfo | None:
        name = self.names.get(key)
        return None if name is None else self.checkpoint.tensors[name]


@dataclass
class _Arrangement:
    """What of the finetune is shown in another way."""

    base: _Side
    finetune: _Side
    views: list[RowView] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def checkpoint(self) -> Checkpoint:
        finetune, views = self.finetune.checkpoint, self.views
        notes = (*finetune.notes, *self.notes, *self.doubts)
        used = {part.name for view in views for part in view.parts}
        kept = {name: info for name, info in finetune.tensors.items() if name not in used}
        renamed = {view.name: replace(view.parts[0], name=view.name) for view in views if view.is_whole}
        changed = [view for view in views if not view.is_whole]
        source = RearrangedSource(finetune.source, changed) if changed else None
        tensors = {**kept, **renamed, **(source.tensors if source else {})}
        return replace(finetune, tensors=tensors, source=source or finetune.source, notes=notes)

    def rename(self) -> None:
        """Gives tensors of another convention the base's names, with the rows of q and k in its order."""
        if self.base.convention == self.finetune.convention:
            return
        number = len(self.views)
        for key, name in self.finetune.names.items():
            ours, theirs = self.base.info(key), self.finetune.checkpoint.tensors[name]
            if ours is None or ours.name == name or not _same_sides(ours, theirs):
                continue
            view = RowView(ours.name, (theirs,))
            if self._needs_rotation(key):
                order = self._rotation(key, ours)
                if order is None:
                    self.doubts.append(_unknown_heads(name))
                    continue
                view = replace(view, order=order)
            self.views.append(view)
        titles = [side.convention.title for side in (self.base, self.finetune) if side.convention]
        if len(self.views) > number:
            renamed = count(len(self.views) - number, "tensor")
            self.notes.append(f"names of {' and '.join(titles)} were translated ({renamed})")

    def _needs_rotation(self, key: str) -> bool:
        is_rotated = key.endswith((".self_attn.q_proj.weight", ".self_attn.k_proj.weight"))
        return is_rotated and self.base.is_interleaved != self.finetune.is_interleaved

    def _rotation(self, key: str, info: TensorInfo) -> Tensor | None:
        """The order of the rows of q or k; None if the configurations do not tell the heads."""
        heads = self._heads()
        if heads is None or heads.size % 2:
            return None
        number = heads.number if ".q_proj." in key else heads.groups
        if info.shape[0] != number * heads.size:
            return None
        order = rotary_order(number, heads.size)
        return order if self.finetune.is_interleaved else inverse(order)

    def _heads(self) -> Heads | None:
        """Those that both configurations state, or the only one that states them."""
        found = {heads for side in (self.base, self.finetune) if (heads := Heads.of(side.checkpoint.config))}
        return next(iter(found)) if len(found) == 1 else None

    def fuse_and_split(self) -> None:
        """Shows split projections as fused where the base has them fused, and the other way round."""
        fused = [self._fused(*each) for each in _fusions(self.base.names, self.finetune.names)]
        split = [self._split(*each) for each in _fusions(self.finetune.names, self.base.names)]
        for number, side, other in ((sum(fused), "base", "finetune"), (sum(split), "finetune", "base")):
            if number:
                self.notes.append(
                    f"the {side} stores projections fused and the {other} separately: the finetune is compared in the "
                    f"base's layout ({count(number, 'fused tensor')})"
                )

    def _fused(self, key: str, parts: Sequence[str]) -> bool:
        """The finetune's `parts` as the base's tensor `key`."""
        ours, theirs = self.base.info(key), [self.finetune.info(part) for part in parts]
        order = _order(key, ours, theirs, self.base, self.finetune)
        if ours is None or order is None:
            return self._doubt(key)
        self.views.append(RowView(ours.name, tuple(info for info in theirs if info is not None), order))
        return True

    def _split(self, key: str, parts: Sequence[str]) -> bool:
        """The finetune's tensor `key` as the base's `parts`."""
        theirs, ours = self.finetune.info(key), [self.base.info(part) for part in parts]
        order = _order(key, theirs, ours, self.finetune, self.base)
        if theirs is None or order is None:
            return self._doubt(key)
        rows = torch.split(inverse(order), [info.shape[0] for info in ours if info is not None])
        for info, own in zip(ours, rows, strict=True):
            assert info is not None
            self.views.append(RowView(info.name, (theirs,), own))
        return True

    def _doubt(self, key: str) -> bool:
        if not any(_FUSED_ON_ONE_SIDE in doubt for doubt in self.doubts):
            doubt = f"{_FUSED_ON_ONE_SIDE}, and the order of its rows is not certain: such tensors are not paired"
            self.doubts.append(f"{quoted(key)} {doubt}")
        return False


def _fusions(fused: Mapping[str, str], split: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(fused name, names of its parts) where one side has the one and the other side the others."""
    for key in fused:
        head, _, last = key.rpartition(".")
        container, _, leaf = head.rpartition(".")
        if key in split or last not in ("weight", "bias"):
            continue
        for parts in _candidates(container, leaf):
            names = tuple(f"{container}.{part}.{last}" for part in parts)
            if all(name in split and name not in fused for name in names):
                yield key, names
                break


def _candidates(container: str, leaf: str) -> Iterable[tuple[str, ...]]:
    if leaf == _GATE_UP[0] and container.endswith(".mlp"):  # the audio encoder of Phi-4 fuses up before gate
        return (_GATE_UP[1],)
    return _SPLIT_ATTENTION if leaf in _FUSED_ATTENTION else ()


def _order(
    key: str, fused: TensorInfo | None, parts: Sequence[TensorInfo | None], fused_side: _Side, split_side: _Side
) -> Tensor | None:
    """For each row of the fused tensor, its row in its parts one after the other; None if it is not certain."""
    if fused is None or not all(part is not None and _fits(part, fused) for part in parts):
        return None
    known = [part for part in parts if part is not None]
    config = fused_side.checkpoint.config
    rows = tuple(part.shape[0] for part in known)
    if sum(rows) != fused.shape[0] or config.get("model_type") in _TRANSPOSED or split_side.is_interleaved:
        return None
    if len(rows) == 2:
        return torch.arange(sum(rows)) if rows[0] == rows[1] else None
    heads = Heads.of(split_side.checkpoint.config)
    if heads is not None and heads.rows != rows:
        return None
    q, k, v = rows
    return fused_order(key.split(".")[-2], config, (q, k, v))


def _fits(part: TensorInfo, fused: TensorInfo) -> bool:
    is_alike = (part.dtype, part.storage is None) == (fused.dtype, fused.storage is None)
    return is_alike and part.shape[1:] == fused.shape[1:] and len(part.shape) in (1, 2) and part.shape[0] > 0


def _same_sides(one: TensorInfo, other: TensorInfo) -> bool:
    return len(one.shape) == len(other.shape) > 0 and one.shape[1:] == other.shape[1:]


def _unknown_heads(name: str) -> str:
    return (
        f"the rows of {quoted(name)} are in the order of Meta's rotary embedding, and the configurations do not tell "
        "the heads to reorder them by: it is not paired"
    )
