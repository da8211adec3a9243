"""Experts stored as separate matrices in one checkpoint and fused in the other, paired if names and shapes are clear.

    P.experts.7.gate_proj.weight (I, H)    P.experts.gate_up_proj (E, 2 I, H): [7], its first I rows
    P.experts.7.up_proj.weight (I, H)                                          [7], the rest
    P.experts.7.down_proj.weight (H, I)    P.experts.down_proj (E, H, I): [7]

This is the layout of transformers 5 and its files of Mixtral, Qwen, OLMoE, DeepSeek and others (`conversion_mapping`,
read 2026-11). Files of Mixtral say `block_sparse_moe` for `mlp`, and w1, w3, w2 for gate, up and down. A transposed
layout has other shapes, unless a matrix is square: then nothing is paired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.name_matches import Tensors, core_name
from deltarank.checkpoints.pieces import FLOAT_DTYPES
from deltarank.results import Outcome, Skipped, count

_MIXTRAL_NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_FUSED_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_SINGLE = re.compile(r"(.{1,300}\.experts)\.(\d{1,5})\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_FUSED = re.compile(r"(.{1,300}\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?")


@dataclass(frozen=True)
class ExpertPair:
    """One expert's matrix on both sides. `single` is the name of the tensor that is stored separately."""

    base: TensorInfo
    finetune: TensorInfo
    single: str
    single_is_base: bool


@dataclass(frozen=True)
class ExpertMatches:
    """`renamed` maps a finetune's name to the base's. `used` are the base's tensors in `pairs`, and the finetune's."""

    renamed: Mapping[str, str]
    pairs: tuple[ExpertPair, ...]
    used: tuple[frozenset[str], frozenset[str]]
    notes: tuple[str, ...]


NO_EXPERT_MATCHES = ExpertMatches({}, (), (frozenset(), frozenset()), ())


def match_experts(base: Tensors, finetune: Tensors, names: Mapping[str, str]) -> ExpertMatches:
    """Matches experts among the tensors that are not in `names`. Linear in their number."""
    matched = set(names.values())
    base = {name: info for name, info in base.items() if name not in matched}
    finetune = {name: info for name, info in finetune.items() if name not in names}
    renamed = _match_mixtral_names(base, finetune)
    matched = set(renamed.values())
    base = {name: info for name, info in base.items() if name not in matched}
    finetune = {name: info for name, info in finetune.items() if name not in renamed}
    base_fused = list(_match_fused(finetune, base))
    finetune_fused = list(_match_fused(base, finetune))
    pairs = [
        *(ExpertPair(part, single, single.name, single_is_base=False) for _, part, single in base_fused),
        *(ExpertPair(single, part, single.name, single_is_base=True) for _, part, single in finetune_fused),
    ]
    used = (
        frozenset([*(fused for fused, *_ in base_fused), *(single.name for *_, single in finetune_fused)]),
        frozenset([*(fused for fused, *_ in finetune_fused), *(single.name for *_, single in base_fused)]),
    )
    notes = _notes(len(renamed), len(base_fused), len(finetune_fused))
    return ExpertMatches(renamed, tuple(pairs), used, tuple(notes))


def parse_expert_name(name: str) -> tuple[str, int, str] | None:
    """(P.experts, 7, "gate_proj") of the name of a single expert's matrix, in the words of transformers 5."""
    match = _SINGLE.fullmatch(_transformers_name(name))
    return (match[1], int(match[2]), match[3]) if match else None


def note_unmatched_experts(skipped: Iterable[Skipped]) -> list[str]:
    """A note if each side has experts that the other does not."""
    unmatched: dict[Outcome, list[str]] = {Outcome.ONLY_IN_BASE: [], Outcome.ONLY_IN_FINETUNE: []}
    for skip in skipped:
        if skip.outcome in unmatched and ".experts." in skip.name:
            unmatched[skip.outcome].append(skip.name)
    base, finetune = unmatched.values()
    if not (base and finetune):
        return []
    in_base = f"the base contains {count(len(base), 'tensor')} of them ({quoted(base[0])})"
    in_finetune = f"the finetune {len(finetune):,} in another layout ({quoted(finetune[0])})"
    return [f"experts are left out: {in_base} and {in_finetune}, so their change is unknown"]


def _transformers_name(name: str) -> str:
    """The name of a matrix in the words of transformers 5, without wrappers."""
    name = core_name(name).replace("block_sparse_moe.", "mlp.")
    match = _SINGLE.fullmatch(name)
    return f"{match[1]}.{match[2]}.{_MIXTRAL_NAMES.get(match[3], match[3])}.weight" if match else name


def _match_mixtral_names(base: Tensors, finetune: Tensors) -> dict[str, str]:
    """Names that differ only in Mixtral's spelling, one to one, of equal shapes."""
    base_names, finetune_names = _by_transformers_name(base), _by_transformers_name(finetune)
    return {
        name: base_names[key]
        for key, name in finetune_names.items()
        if key in base_names and finetune[name].shape == base[base_names[key]].shape
    }


def _by_transformers_name(tensors: Tensors) -> dict[str, str]:
    names: dict[str, list[str]] = {}
    for name in tensors:
        names.setdefault(_transformers_name(name), []).append(name)
    return {key: same[0] for key, same in names.items() if len(same) == 1}


def _match_fused(singles: Tensors, stacks: Tensors) -> Iterator[tuple[str, TensorInfo, TensorInfo]]:
    """(name of the fused tensor, a part of it, the separate tensor), for each fused tensor that matches completely."""
    by_name = _by_transformers_name(singles)
    single_infos = {key: singles[name] for key, name in by_name.items() if _SINGLE.fullmatch(key)}
    for key, name in _by_transformers_name(stacks).items():
        match, info = _FUSED.fullmatch(key), stacks[name]
        if match is None or len(info.shape) != 3 or info.shape[1] == info.shape[2] or not _is_plain(info):
            continue
        parts = _FUSED_PARTS[match[2]]
        experts, rows, columns = info.shape
        expected = [f"{match[1]}.{i}.{part}.weight" for i in range(min(experts, len(single_infos))) for part in parts]
        if len(expected) != experts * len(parts) or rows % len(parts):
            continue
        if f"{match[1]}.{experts}.{parts[0]}.weight" in single_infos:  # one expert more than the fused tensor holds
            continue
        shape = (rows // len(parts), columns)
        members = [single_infos.get(each) for each in expected]
        matching = [each for each in members if each is not None and each.shape == shape and _is_plain(each)]
        if len(matching) == len(expected):
            yield from ((name, _part(info, i, shape, parts), each) for i, each in enumerate(matching))


def _is_plain(info: TensorInfo) -> bool:
    return info.dtype in FLOAT_DTYPES and info.storage is None


def _part(info: TensorInfo, index: int, shape: tuple[int, int], parts: tuple[str, ...]) -> TensorInfo:
    nbytes = info.nbytes // (info.shape[0] * len(parts))
    suffix = f".{parts[index % len(parts)]}" if len(parts) > 1 else ""
    name = f"{info.name}[{index // len(parts)}]{suffix}"
    return replace(info, name=name, shape=shape, start=info.start + index * nbytes, nbytes=nbytes)


def _notes(renamed: int, base_fused: int, finetune_fused: int) -> Iterator[str]:
    if renamed:
        yield f"`block_sparse_moe` and w1, w3, w2 were read as `mlp` and gate, up, down ({count(renamed, 'tensor')})"
    for number, side, other in ((base_fused, "base", "finetune"), (finetune_fused, "finetune", "base")):
        if number:
            yield (
                f"the {side} stores its experts fused and the {other} separately: they are compared expert by expert, "
                f"gate before up, as transformers 5 fuses them ({count(number, 'matrix', 'matrices')})"
            )
