"""Experts that one checkpoint stores a matrix each, and the other fused: paired where names and shapes leave no doubt.

    P.experts.7.gate_proj.weight (I, H)    P.experts.gate_up_proj (E, 2 I, H): [7], its first I rows
    P.experts.7.up_proj.weight (I, H)                                          [7], the rest
    P.experts.7.down_proj.weight (H, I)    P.experts.down_proj (E, H, I): [7]

So do transformers 5 and its files of Mixtral, Qwen, OLMoE, DeepSeek and others (`conversion_mapping`, read 2026-11).
Files of Mixtral say `block_sparse_moe` for `mlp`, and w1, w3, w2 for gate, up and down. Layouts that store experts
transposed have other shapes; where both sides of a matrix are of one length the shapes would not tell, and nothing is
paired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.prefixes import core
from deltarank.checkpoints.pieces import FLOAT_DTYPES
from deltarank.results import Outcome, Skipped, count

Tensors = Mapping[str, TensorInfo]

_OLD = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_EXPERT = re.compile(r"(.{1,300}\.experts)\.(\d{1,5})\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_HOLDER = ".experts."
_ALONE = (Outcome.ONLY_IN_FINETUNE, Outcome.ONLY_IN_BASE)
_FUSED = re.compile(r"(.{1,300}\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?")


@dataclass(frozen=True)
class Slice:
    """One expert's matrix on both sides; `named` is the tensor that is stored by itself, whose name says its place."""

    base: TensorInfo
    finetune: TensorInfo
    named: str
    in_base: bool


@dataclass(frozen=True)
class Experts:
    """`renamed` maps a finetune's name to the base's; tensors in `slices` are `taken`: the base's, the finetune's."""

    renamed: Mapping[str, str]
    slices: tuple[Slice, ...]
    taken: tuple[frozenset[str], frozenset[str]]
    notes: tuple[str, ...]


NO_EXPERTS = Experts({}, (), (frozenset(), frozenset()), ())


def match_experts(base: Tensors, finetune: Tensors, names: Mapping[str, str]) -> Experts:
    """What of the tensors that are not in `names` belongs together. Linear in their number."""
    matched = set(names.values())
    theirs = {name: info for name, info in base.items() if name not in matched}
    ours = {name: info for name, info in finetune.items() if name not in names}
    renamed = _renamed(theirs, ours)
    gone = set(renamed.values())
    theirs = {name: info for name, info in theirs.items() if name not in gone}
    ours = {name: info for name, info in ours.items() if name not in renamed}
    into_base = list(_sliced(ours, theirs))
    into_ours = list(_sliced(theirs, ours))
    slices = [
        *(Slice(part, alone, alone.name, in_base=False) for _, part, alone in into_base),
        *(Slice(alone, part, alone.name, in_base=True) for _, part, alone in into_ours),
    ]
    taken = (
        frozenset([*(fused for fused, *_ in into_base), *(alone.name for *_, alone in into_ours)]),
        frozenset([*(fused for fused, *_ in into_ours), *(alone.name for *_, alone in into_base)]),
    )
    return Experts(renamed, tuple(slices), taken, tuple(_notes(len(renamed), len(into_base), len(into_ours))))


def parse_expert_name(name: str) -> tuple[str, int, str] | None:
    """(P.experts, 7, "gate_proj") of the name of a single expert's matrix, as transformers 5 calls it."""
    found = _EXPERT.fullmatch(_plain(name))
    return (found[1], int(found[2]), found[3]) if found else None


def unmatched_experts(skipped: Iterable[Skipped]) -> Iterator[str]:
    """A sentence, where each side has experts that the other stores in another way."""
    alone = {side: [s.name for s in skipped if s.outcome is side and _HOLDER in s.name] for side in _ALONE}
    ours, theirs = (len(alone[side]) for side in _ALONE)
    if ours and theirs:
        yield (
            f"experts are left out: the base holds {count(theirs, 'tensor')} of them ({shown(alone[_ALONE[1]][0])}) "
            f"and the finetune {ours:,}, stored in another way ({shown(alone[_ALONE[0]][0])}): how much they "
            "changed is not known"
        )


def _plain(name: str) -> str:
    """As transformers 5 calls it in a module, whatever wraps it."""
    plain = core(name).replace("block_sparse_moe.", "mlp.")
    found = _EXPERT.fullmatch(plain)
    return f"{found[1]}.{found[2]}.{_OLD.get(found[3], found[3])}.weight" if found else plain


def _renamed(base: Tensors, finetune: Tensors) -> dict[str, str]:
    """Names that are one but for the old spelling, one to one, of equal shapes."""
    theirs, ours = _by_plain(base), _by_plain(finetune)
    return {
        name: theirs[plain]
        for plain, name in ours.items()
        if plain in theirs and finetune[name].shape == base[theirs[plain]].shape
    }


def _by_plain(tensors: Tensors) -> dict[str, str]:
    names: dict[str, list[str]] = {}
    for name in tensors:
        names.setdefault(_plain(name), []).append(name)
    return {plain: same[0] for plain, same in names.items() if len(same) == 1}


def _sliced(singles: Tensors, stacks: Tensors) -> Iterator[tuple[str, TensorInfo, TensorInfo]]:
    """(name of the fused tensor, its part, the tensor by itself), for every fused one whose parts are all there."""
    known = {plain: singles[name] for plain, name in _by_plain(singles).items() if _EXPERT.fullmatch(plain)}
    for plain, name in _by_plain(stacks).items():
        found, info = _FUSED.fullmatch(plain), stacks[name]
        if found is None or len(info.shape) != 3 or info.shape[1] == info.shape[2] or not _is_plain(info):
            continue
        parts = _PARTS[found[2]]
        wanted = [f"{found[1]}.{i}.{part}.weight" for i in range(min(info.shape[0], len(known))) for part in parts]
        shape = (info.shape[1] // len(parts), info.shape[2])
        alone = [known.get(each) for each in wanted]
        if len(wanted) != info.shape[0] * len(parts) or info.shape[1] % len(parts):
            continue
        if f"{found[1]}.{info.shape[0]}.{parts[0]}.weight" in known:  # one expert more than the stack holds
            continue
        members = [each for each in alone if each is not None and each.shape == shape and _is_plain(each)]
        if len(members) == len(wanted):
            yield from ((name, _part(info, i, shape, parts), each) for i, each in enumerate(members))


def _is_plain(info: TensorInfo) -> bool:
    return info.dtype in FLOAT_DTYPES and info.storage is None


def _part(info: TensorInfo, number: int, shape: tuple[int, int], parts: tuple[str, ...]) -> TensorInfo:
    size = info.nbytes // (info.shape[0] * len(parts))
    which = f".{parts[number % len(parts)]}" if len(parts) > 1 else ""
    name = f"{info.name}[{number // len(parts)}]{which}"
    return replace(info, name=name, shape=shape, start=info.start + number * size, nbytes=size)


def _notes(renamed: int, into_base: int, into_ours: int) -> Iterator[str]:
    if renamed:
        yield f"`block_sparse_moe` and w1, w3, w2 were read as `mlp` and gate, up, down ({count(renamed, 'tensor')})"
    for number, side, other in ((into_base, "base", "finetune"), (into_ours, "finetune", "base")):
        if number:
            yield (
                f"the {side} stores its experts fused and the {other} one by one: they are compared expert by expert, "
                f"gate before up, as transformers 5 fuses them ({count(number, 'matrix', 'matrices')})"
            )
