"""What an adapter adds to each tensor: as PEFT adds it, or as a server would, mistakes included.

What PEFT does was read in peft 0.21 and is held against PEFT itself in the tests. What servers do was read in their
sources in 2026-11; none of them was run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from deltarank.adapters._aim import Landing, Map, Target, land
from deltarank.adapters._read import Adapter, Kind, Part, Stray
from deltarank.adapters._read_config import scale_of
from deltarank.checkpoints import Pair
from deltarank.errors import AdapterError, UsageError
from deltarank.words import count, listing


class Habit(Enum):
    """What a server does with something that not every adapter has."""

    TAKES = "takes"
    IGNORES = "ignores"
    REFUSES = "refuses"


_TAKES, _IGNORES, _REFUSES = Habit.TAKES, Habit.IGNORES, Habit.REFUSES


@dataclass(frozen=True)
class Habits:
    """How a server reads an adapter.

    own_alpha, own_rank  a matrix's scale follows alpha_pattern, rank_pattern
    stored_rank          a matrix's scale follows the rank of its factors in the file, whatever the configuration says
    most_rank            the highest rank that can be allowed
    wholes, norms, biases, inputs    modules_to_save; norms among them; biases; factors of the input embedding
    one_rank             all layers of a module must have one rank
    all_layers           a module that lacks a layer is dropped in all
    """

    title: str
    own_alpha: bool = False
    own_rank: bool = False
    stored_rank: bool = False
    rslora: bool = True
    most_rank: int | None = None
    wholes: Habit = _IGNORES
    norms: Habit = _IGNORES
    biases: Habit = _IGNORES
    inputs: Habit = _TAKES
    one_rank: bool = False
    all_layers: bool = False


_PEFT = Habits("PEFT", own_alpha=True, own_rank=True, wholes=_TAKES, norms=_TAKES, biases=_TAKES)
SERVERS: Mapping[str, Habits] = {
    "peft": _PEFT,
    # PEFTHelper keeps r and lora_alpha alone; a tensor that is no factor is an error (vllm/lora, 2026-11).
    "vllm": Habits("vLLM", most_rank=512, wholes=_REFUSES, norms=_REFUSES, biases=_REFUSES),
    # lora_config.py reads the overrides; use_rslora is not read (sglang#40835).
    "sglang": Habits("SGLang", own_alpha=True, own_rank=True, rslora=False),
    # adapters/lora.py: ranks are stacked over layers; one layer missing, and the type is dropped.
    "lorax": Habits("LoRAX", inputs=_IGNORES, one_rank=True, all_layers=True),
    # llama-adapter.h: lora_alpha / the rank of each tensor; convert_lora_to_gguf.py ends at what is no factor.
    "llama.cpp": Habits("llama.cpp", stored_rank=True, rslora=False, wholes=_REFUSES, biases=_REFUSES),
}


@dataclass(frozen=True)
class Change:
    """A part that is added, and by what its product is multiplied (1 for what is no product)."""

    landing: Landing
    scale: float


@dataclass(frozen=True)
class Applied:
    """An adapter laid over two checkpoints, from headers alone.

    changes          by the name of the tensor that they change, in the order in which they are added
    strays           what of the file changes nothing, and why
    notes            what the server does otherwise than PEFT, a sentence each
    """

    changes: Mapping[str, tuple[Change, ...]]
    strays: tuple[Stray, ...]
    notes: tuple[str, ...]


def apply(adapter: Adapter, targets: Iterable[Target], *, server: str | None, config: Mapping[str, Any]) -> Applied:
    """Lays an adapter over the tensors that two checkpoints share.

    Args:
        server: whose habits count; None is PEFT.
        config: config.json of the base.

    Raises:
        UsageError: (slug "bad-server") there is no such server.
        AdapterError: (slug "adapter-refused") the server does not load this; (slug "adapter-wrong-base") most of it
            fits nothing here.
    """
    habits = habits_of(server)
    _refuse(adapter, habits)
    tensors = Map(targets)
    landings, strays = _land_all(adapter, tensors, config)
    kept: list[Landing] = []
    for landing in landings:
        reason = _why_not(adapter, landing.part, habits)
        if reason is None:
            kept.append(landing)
        else:
            strays.append(Stray(landing.part.up.name, reason))
    if habits.all_layers:
        kept, dropped = _whole_types(kept, tensors, habits)
        strays += dropped
    changes: dict[str, tuple[Change, ...]] = {}
    for landing in sorted(kept, key=lambda each: each.part.is_lora):
        before = changes.get(landing.target.name, ())
        changes[landing.target.name] = (*before, Change(landing, _scale(adapter, landing.part, habits)))
    return Applied(changes, (*adapter.strays, *strays), tuple(_notes(adapter, habits)))


def habits_of(server: str | None) -> Habits:
    if server is None:
        return _PEFT
    if server not in SERVERS:
        raise UsageError(
            f"{server!r} is no server whose habits are known.",
            cure=f"Choose one of {listing(list(SERVERS))}.",
            slug="bad-server",
        )
    return SERVERS[server]


def _land_all(adapter: Adapter, tensors: Map, config: Mapping[str, Any]) -> tuple[list[Landing], list[Stray]]:
    """Raises AdapterError if more than half of the adapter lands nowhere."""
    landings: list[Landing] = []
    strays: list[Stray] = []
    for part in adapter.parts:
        target = tensors.find(part.tensor)
        found = (
            "the checkpoints have no such tensor in common"
            if target is None
            else land(part, target, fan_in_fan_out=adapter.config.fan_in_fan_out, model_type=config.get("model_type"))
        )
        if isinstance(found, Landing):
            landings.append(found)
        else:
            strays.append(Stray(part.up.name, found))
    if 2 * len(landings) <= len(adapter.parts):
        _refuse_stranger(adapter, strays)
    return landings, strays


def _refuse_stranger(adapter: Adapter, strays: list[Stray]) -> NoReturn:
    if not adapter.parts:
        first = adapter.strays[0] if adapter.strays else Stray("the file", "it holds no tensor")
        raise AdapterError(
            f"The adapter changes nothing: {ascii(first.name)[:120]}: {first.reason}.",
            cure="Give an adapter that PEFT's `save_pretrained` wrote.",
            slug="adapter-empty",
        )
    raise AdapterError(
        f"This adapter does not belong to this base: {len(strays):,} of {count(len(adapter.parts), 'part')} fit "
        f"nothing in it, such as {ascii(strays[0].name)[:120]}: {strays[0].reason}.",
        cure="Give the base that the adapter was made for: its adapter_config.json names it (base_model_name_or_path).",
        slug="adapter-wrong-base",
    )


def _refuse(adapter: Adapter, habits: Habits) -> None:
    reasons = list(_refusals(adapter, habits))
    if reasons:
        raise AdapterError(
            f"{habits.title} does not load this adapter: {listing(reasons, most=4)}.",
            cure="Leave out --server to measure it as PEFT applies it, or make one with `deltarank extract --server`.",
            slug="adapter-refused",
        )


def _refusals(adapter: Adapter, habits: Habits) -> Iterator[str]:
    loras = [part for part in adapter.parts if part.is_lora]
    highest = max([adapter.config.rank, *(part.rank for part in loras)])
    if habits.most_rank is not None and highest > habits.most_rank:
        yield f"it has rank {highest:,}, and the highest possible is {habits.most_rank}"
    wholes = [part for part in adapter.parts if part.kind is Kind.WHOLE and _habit(part, habits) is _REFUSES]
    if wholes or (adapter.config.modules_to_save and habits.wholes is _REFUSES):
        named = [ascii(part.tensor)[1:-1][:80] for part in wholes] or list(adapter.config.modules_to_save)
        yield f"it holds whole tensors ({listing(named, most=2)})"
    biases = any(part.kind is Kind.BIAS for part in adapter.parts) or adapter.config.bias != "none"
    if habits.biases is _REFUSES and (biases or adapter.config.lora_bias):
        yield "it holds biases"
    if habits.one_rank and len({part.rank for part in loras if part.rank}) > 1 and (mixed := _mixed(loras)):
        yield f"the layers of {mixed} have unlike ranks"
    if adapter.config.has_patterns and habits.one_rank and adapter.config.rank_pattern:
        yield "it has a rank_pattern"


def _mixed(loras: Iterable[Part]) -> str | None:
    """A module that has another rank in another layer."""
    ranks: dict[str, int] = {}
    for part in loras:
        leaf = part.module.rsplit(".", 1)[-1]
        if ranks.setdefault(leaf, part.rank) != part.rank:
            return ascii(leaf)[1:-1]
    return None


def _habit(part: Part, habits: Habits) -> Habit:
    """Of a whole tensor or a bias."""
    if part.kind is Kind.BIAS or part.tensor.endswith(".bias"):
        return habits.biases
    is_norm = part.module.rsplit(".", 1)[-1].endswith("norm")
    return habits.norms if is_norm else habits.wholes


def _why_not(adapter: Adapter, part: Part, habits: Habits) -> str | None:
    """Why a part that fits changes nothing."""
    if habits is not _PEFT:
        ignored = _habit(part, habits) if not part.is_lora else _TAKES
        if part.kind is Kind.EMBEDDING:
            ignored = habits.inputs
        return None if ignored is _TAKES else f"{habits.title} passes it over"
    config = adapter.config
    if part.kind is Kind.BIAS:
        return None if config.lora_bias else "adapter_config.json does not say lora_bias, so PEFT passes it over"
    if part.kind is Kind.WHOLE:
        hidden = config.aims_at(part.module) and not (part.wrapped or config.saves(part.module))
        return "its module has a LoRA and is not in modules_to_save, so PEFT passes it over" if hidden else None
    if not config.aims_at(part.module):
        return "target_modules does not name its module, so PEFT passes it over"
    stated = config.rank_of(part.module)
    if stated != part.rank:
        return f"of rank {part.rank:,} in the file and {stated:,} in adapter_config.json, so PEFT does not load it"
    return None


def _scale(adapter: Adapter, part: Part, habits: Habits) -> float:
    config = adapter.config
    if part.kind is Kind.WHOLE:
        return 1.0
    alpha = config.alpha_of(part.module) if habits.own_alpha else config.alpha
    rank = config.rank_of(part.module) if habits.own_rank else config.rank
    if habits.stored_rank and part.rank:
        rank = part.rank
    return scale_of(alpha, rank, rslora=config.rslora and habits.rslora)


def _whole_types(landings: list[Landing], tensors: Map, habits: Habits) -> tuple[list[Landing], list[Stray]]:
    """Without the modules of which a layer is missing."""
    layers: dict[str, set[int | None]] = {}
    for target in tensors.targets:
        if isinstance(target, Pair):
            layers.setdefault(target.module, set()).add(target.layer)
    for landing in landings:
        if isinstance(landing.target, Pair):
            layers[landing.target.module].discard(landing.target.layer)
    dropped = [x for x in landings if isinstance(x.target, Pair) and layers[x.target.module]]
    kept = [x for x in landings if x not in dropped]
    reason = f"a layer of this module is missing, so {habits.title} drops all of them"
    return kept, [Stray(x.part.up.name, reason) for x in dropped]


def _notes(adapter: Adapter, habits: Habits) -> Iterator[str]:
    config = adapter.config
    if config.targets.unread or config.excluded.unread:
        yield "target_modules is an expression too involved to be run: every tensor of the file is taken as meant"
    if config.alpha_pattern and not habits.own_alpha:
        yield f"{habits.title} passes alpha_pattern over: one alpha ({config.alpha:g}) for all matrices"
    if config.rank_pattern and not habits.own_rank:
        ranks = "the rank of each tensor" if habits.stored_rank else f"one rank ({config.rank})"
        yield f"{habits.title} passes rank_pattern over: scales follow {ranks}"
    if config.rslora and not habits.rslora:
        yield f"{habits.title} ignores use_rslora: it multiplies by alpha / r where alpha / sqrt(r) is meant"
