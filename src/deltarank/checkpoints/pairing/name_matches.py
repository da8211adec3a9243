"""Matches the tensors of base and finetune by name, and the rest by their names without wrapper prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.results import count, listing
from deltarank.tensor_names import BASE_MODEL_PREFIXES, WRAPPERS, strip_inner_wrappers, wrapper_count

Tensors = Mapping[str, TensorInfo]

_ALL_WRAPPERS = WRAPPERS | BASE_MODEL_PREFIXES
_MAX_PREFIX = 6
"""The most parts of a prefix that no table lists."""

_COPIES = frozenset({"ema", "ema_model", "model_ema", "averaged_model", "teacher", "student"})
"""Prefixes of a second set of weights in the same file."""

_OLD_NAMES = {"gamma": "weight", "beta": "bias"}
"""What BERT's norms called their parameters. transformers renames them on load."""


@dataclass(frozen=True)
class NameMatches:
    """`names` maps a finetune's name to the base's.

    ambiguous  counts names with several candidates
    copies     prefixes under which one side holds all names of the other, so that neither can be chosen
    """

    names: Mapping[str, str]
    notes: tuple[str, ...]
    ambiguous: int
    copies: tuple[str, ...] = ()


def match_names(base: Tensors, finetune: Tensors) -> NameMatches:
    """Equal names first; the rest by their core names (without wrappers), one to one; then by any prefix.

    A pair of prefixes is accepted if the shapes agree for more than half of the names that it matches. Each accepted
    pair is reported in a note. Linear in the number of names.
    """
    names = {name: name for name in finetune if name in base}
    base_cores = _by_core_name(name for name in base if name not in names)
    finetune_cores = _by_core_name(name for name in finetune if name not in names)
    by_prefixes: dict[tuple[str, str], list[tuple[str, str]]] = {}
    ambiguous = 0
    for core, finetune_names in finetune_cores.items():
        base_names = base_cores.get(core, [])
        if len(finetune_names) == len(base_names) == 1:
            [finetune_name], [base_name] = finetune_names, base_names
            prefixes = (_prefix(base_name), _prefix(finetune_name))
            by_prefixes.setdefault(prefixes, []).append((finetune_name, base_name))
        elif base_names:
            ambiguous += len(finetune_names)
    notes = []
    for prefixes, pairs in by_prefixes.items():
        if _agree(base, finetune, pairs):
            names.update(pairs)
            notes.append(_note(*prefixes, len(pairs)))
    more = _match_unlisted_prefix(base, finetune, names)
    return NameMatches({**names, **more.names}, (*notes, *more.notes), ambiguous, more.copies)


def find_copies(tensors: Tensors, matched: Iterable[str]) -> frozenset[str]:
    """The tensors that repeat one of `matched`, which are names of the same checkpoint.

    X.original_module.weight          PEFT's untrained copy, beside X.modules_to_save.default.weight
    ema.X.weight                      averaged weights, beside those that were trained
    layers.61.embed_tokens.weight     the vocabulary of a layer for multi-token prediction
    """
    matched = set(matched)
    shapes = {core_name(name): tensors[name].shape for name in matched}
    return frozenset(
        name
        for name, info in tensors.items()
        if name not in matched and any(shapes.get(core) == info.shape for core in _copied_names(name))
    )


def _copied_names(name: str) -> Iterator[str]:
    """The core names of the tensors that this one may be a copy of."""
    parts = core_name(name).split(".")
    if "original_module" in parts[:-1]:
        yield ".".join(part for part in parts if part != "original_module")
    if parts[0] in _COPIES and len(parts) > 1:
        yield core_name(".".join(parts[1:]))
    if parts[-2:] == ["embed_tokens", "weight"] and len(parts) > 2:
        yield "embed_tokens.weight"
    if parts[-3:] == ["shared_head", "head", "weight"]:
        yield from ("lm_head.weight", "embed_tokens.weight")


def core_name(name: str) -> str:
    """The name without wrappers, as transformers spells it."""
    parts = name.split(".")
    first = wrapper_count(parts, _ALL_WRAPPERS)
    core = strip_inner_wrappers(parts[first:])
    if core[-1:] and core[-1] in _OLD_NAMES and core[-2:-1] == ["LayerNorm"]:
        core[-1] = _OLD_NAMES[core[-1]]
    return ".".join(core)


def _by_core_name(names: Iterable[str]) -> dict[str, list[str]]:
    return _grouped(names, core_name)


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _prefix(name: str) -> str:
    parts = name.split(".")
    return "".join(part + "." for part in parts[: wrapper_count(parts, _ALL_WRAPPERS)])


def _agree(base: Tensors, finetune: Tensors, pairs: Sequence[tuple[str, str]]) -> bool:
    agreeing = sum(_shapes_agree(finetune[name].shape, base[base_name].shape) for name, base_name in pairs)
    return 2 * agreeing > len(pairs)


def _shapes_agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Equal shapes but for the rows: a vocabulary may have grown."""
    return len(one) == len(other) and one[1:] == other[1:]


def _match_unlisted_prefix(base: Tensors, finetune: Tensors, names: Mapping[str, str]) -> NameMatches:
    """Matches the rest if one side's names are the other's behind one more prefix, such as `student.`."""
    used = set(names.values())
    base_left = {name: info for name, info in base.items() if name not in used}
    finetune_left = {name: info for name, info in finetune.items() if name not in names}
    found, copies = _behind_prefix(base_left, finetune_left)
    if found or copies:
        pairs = {longer: shorter for shorter, longer in found}
    else:
        found, copies = _behind_prefix(finetune_left, base_left)
        pairs = dict(found)
    notes: tuple[str, ...] = ()
    if pairs:
        finetune_name, base_name = next(iter(pairs.items()))
        core = core_name(min(finetune_name, base_name, key=len))
        notes = (_note(base_name.removesuffix(core), finetune_name.removesuffix(core), len(pairs)),)
    return NameMatches(pairs, notes, 0, copies)


def _behind_prefix(short: Tensors, long: Tensors) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """The pairs (short name, long name) of the one prefix that most matrices have; or the prefixes, if several do."""
    cores = {core: names[0] for core, names in _by_core_name(short).items() if len(names) == 1}
    matrices = sum(len(short[name].shape) > 1 for name in cores.values())
    by_prefix: dict[str, list[tuple[str, str]]] = {}
    for name in long:
        parts = core_name(name).split(".")
        for i in range(1, min(len(parts), _MAX_PREFIX + 1)):
            if (match := cores.get(".".join(parts[i:]))) is not None:
                by_prefix.setdefault(".".join(parts[:i]), []).append((match, name))
    complete = {
        prefix: pairs
        for prefix, pairs in by_prefix.items()
        if 2 * sum(len(short[one].shape) > 1 and short[one].shape == long[other].shape for one, other in pairs)
        > matrices
    }
    if len(complete) > 1:
        return [], tuple(complete)
    for prefix, pairs in complete.items():
        return [*pairs, *_behind_outer_prefixes(prefix, by_prefix, short, long)], ()
    return [], ()


def _behind_outer_prefixes(
    prefix: str, by_prefix: Mapping[str, list[tuple[str, str]]], short: Tensors, long: Tensors
) -> Iterator[tuple[str, str]]:
    """What lies directly in a wrapper of the prefix: `student.lm_head` beside `student.model.layers`."""
    used = {one for one, _ in by_prefix[prefix]}
    parts = prefix.split(".")
    for i in range(len(parts) - 1, 0, -1):
        for one, other in by_prefix.get(".".join(parts[:i]), []):
            if one not in used and _shapes_agree(short[one].shape, long[other].shape):
                used.add(one)
                yield one, other


def several_copies(prefixes: Sequence[str]) -> str:
    """Why names were not matched that one side holds under each of these prefixes."""
    return (
        f"one side contains the names of the other several times, under {listing([quoted(p + '.') for p in prefixes])}"
    )


def _note(base_prefix: str, finetune_prefix: str, number: int) -> str:
    tensors = count(number, "tensor")
    if base_prefix == finetune_prefix:
        return f"wrappers inside the names, such as `_orig_mod.`, were ignored ({tensors})"
    if not base_prefix:
        return f"the finetune prefixes names of the base with {quoted(finetune_prefix)} ({tensors})"
    if not finetune_prefix:
        return f"the base prefixes names of the finetune with {quoted(base_prefix)} ({tensors})"
    return f"the prefix {quoted(base_prefix)} of the base is {quoted(finetune_prefix)} in the finetune ({tensors})"
