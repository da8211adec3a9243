"""What an adapter adds to each tensor: as PEFT adds it, or as a server would, mistakes included.

What PEFT does was read in peft 0.21 and is held against PEFT itself in the tests. What servers do stands in
servers.json, as read in their sources; none of them was run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from deltarank.adapters._aim import Landing, Map, Target, land
from deltarank.adapters._bare import spread
from deltarank.adapters._read import Adapter, Kind, Part, Stray
from deltarank.adapters._read_config import scale_of
from deltarank.adapters._servers import Server, kind_of, router_in_files, taken_for_experts
from deltarank.adapters._servers import server as server_rules
from deltarank.checkpoints import Pair
from deltarank.errors import AdapterError
from deltarank.words import count, listing


class Habit(Enum):
    """What a server does with something that not every adapter has."""

    TAKES = "honoured"
    IGNORES = "ignored"
    REFUSES = "refused"


PEFT, _TITLE = "peft", "PEFT"
_TAKES, _IGNORES, _REFUSES = Habit.TAKES, Habit.IGNORES, Habit.REFUSES

_HEADS = frozenset({"lm_head.weight"})
_NO_BIAS = "the base has no bias there to compare with"

# What servers.json does not say: a converter that takes norms, which are then ignored; a table that takes no factors.
_FORGETS_NORMS = frozenset({"llama.cpp"})
_NO_INPUT_FACTORS = frozenset({"lorax"})


@dataclass(frozen=True)
class Habits:
    """How a server reads an adapter, by the rules of servers.json.

    scale            "patterns": a matrix's own alpha and rank by the configuration; "config": one for all;
                     "tensor": one alpha, and the rank of the factors in the file
    most_rank        the highest rank that can be allowed
    wholes, norms, biases, inputs    modules_to_save; norms among them; biases; factors of the input embedding
    stacks           factors of experts that share a tensor
    all_layers       a module that lacks a layer is dropped in all
    unless           which versions read patterns all the same, in words
    """

    title: str
    scale: str
    patterns: Habit
    rslora: Habit
    most_rank: int | None
    wholes: Habit
    norms: Habit
    biases: Habit
    inputs: Habit
    stacks: Habit
    all_layers: bool
    unless: str = ""

    @classmethod
    def of(cls, rules: Server) -> Habits:
        wholes = Habit(rules.modules_to_save)
        return cls(
            title=rules.title,
            scale=rules.scale,
            patterns=Habit(rules.patterns),
            rslora=Habit(rules.rslora),
            most_rank=max(rules.ranks) if rules.ranks else None,
            wholes=wholes,
            norms=_IGNORES if rules.name in _FORGETS_NORMS else wholes,
            biases=Habit(rules.bias),
            inputs=_IGNORES if rules.name in _NO_INPUT_FACTORS else _TAKES,
            stacks=Habit(rules.stacks),
            all_layers=rules.wants_whole_types,
            unless=f" ({rules.patterns_read_by})" if rules.patterns_read_by else "",
        )


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
    confused = _confused(tensors, config)
    for landing in landings:
        reason = _why_not(adapter, landing.part, habits, confused)
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
    return Applied(changes, tuple(dict.fromkeys((*adapter.strays, *strays))), tuple(_notes(adapter, habits)))


def habits_of(name: str | None) -> Habits:
    """Raises UsageError (slug "bad-server") for a server that nobody knows."""
    return Habits.of(server_rules(name or PEFT))


def _land_all(adapter: Adapter, tensors: Map, config: Mapping[str, Any]) -> tuple[list[Landing], list[Stray]]:
    """Raises AdapterError if more than half of the adapter lands nowhere."""
    landings: list[Landing] = []
    found_parts = list(spread(adapter.parts, adapter.config, tensors))
    strays = [each for each in found_parts if isinstance(each, Stray)]
    parts = [each for each in found_parts if isinstance(each, Part)]
    for part in parts:
        target = tensors.find(part.tensor) or tensors.find(_in_files(part, config))
        if target is None and adapter.config.ties and part.kind is Kind.WHOLE and part.tensor in _HEADS:
            continue  # the copy of an embedding that the base's output head is tied to
        found = (
            land(part, target, fan_in_fan_out=adapter.config.fan_in_fan_out, model_type=config.get("model_type"))
            if target is not None
            else (_NO_BIAS if part.kind is Kind.BIAS else "the checkpoints have no such tensor in common")
        )
        if isinstance(found, Landing):
            landings.append(found)
        else:
            strays.append(Stray(part.up.name, found))
    if len(landings) <= len(strays):
        _refuse_stranger(adapter, strays, len(landings) + len(strays))
    return landings, strays


def _in_files(part: Part, config: Mapping[str, Any]) -> str:
    """PEFT knows routers by the names of modules, which are not always those in files."""
    module, _, leaf = part.tensor.rpartition(".")
    return f"{router_in_files(module, config)}.{leaf}"


def _refuse_stranger(adapter: Adapter, strays: list[Stray], parts: int) -> NoReturn:
    if not adapter.parts:
        first = adapter.strays[0] if adapter.strays else Stray("the file", "it holds no tensor")
        raise AdapterError(
            f"The adapter changes nothing: {ascii(first.name)[:120]}: {first.reason}.",
            cure="Give an adapter that PEFT's `save_pretrained` wrote.",
            slug="adapter-empty",
        )
    raise AdapterError(
        f"This adapter does not belong to this base: {len(strays):,} of {count(parts, 'part')} fit "
        f"nothing in it, such as {ascii(strays[0].name)[:120]}: {strays[0].reason}.",
        cure="Give the base that the adapter was made for: its adapter_config.json names it (base_model_name_or_path).",
        slug="adapter-wrong-base",
    )


def _refuse(adapter: Adapter, habits: Habits) -> None:
    reasons = list(_refusals(adapter, habits))
    if reasons:
        raise AdapterError(
            f"{_loader(habits)} this adapter: {listing(reasons, most=4)}.",
            cure="Leave out --server to measure it as PEFT applies it, or make one with `deltarank extract --server`.",
            slug="adapter-refused",
        )


def _loader(habits: Habits) -> str:
    return "Not every server loads" if habits.title == "every server" else f"{habits.title} does not load"


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
    if habits.stacks is _REFUSES and adapter.config.parameters:
        yield "it has LoRAs on bare parameters (fused experts)"
    if habits.rslora is _REFUSES and adapter.config.rslora:
        yield "it is rank-stabilised (use_rslora)"
    if habits.patterns is _REFUSES:
        if adapter.config.has_patterns:
            yield "it has a rank_pattern or an alpha_pattern"
        if (mixed := _mixed(loras)) is not None:
            yield f"the layers of {mixed} have unlike ranks"


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


def _confused(tensors: Map, config: Mapping[str, Any]) -> frozenset[str]:
    """The last words by which PEFT takes modules for experts; empty for a model that has none in its files."""
    has_experts = any(kind_of(target.base.tensor) == "expert" for target in tensors.targets)
    return taken_for_experts(config) if has_experts else frozenset()


def _why_not(adapter: Adapter, part: Part, habits: Habits, confused: frozenset[str]) -> str | None:
    """Why a part that fits changes nothing."""
    if habits.title != _TITLE:
        ignored = _habit(part, habits) if not part.is_lora else habits.stacks if part.slot else _TAKES
        if part.kind is Kind.EMBEDDING:
            ignored = habits.inputs
        return None if ignored is _TAKES else f"{habits.title} passes it over"
    config = adapter.config
    if part.kind is Kind.BIAS:
        return None if config.lora_bias else "adapter_config.json does not say lora_bias, so PEFT passes it over"
    if part.kind is Kind.WHOLE:
        hidden = config.aims_at(part.module) and not (part.wrapped or config.saves(part.module))
        return "its module has a LoRA and is not in modules_to_save, so PEFT passes it over" if hidden else None
    aimed = config.aims_at_parameter(part.module) if part.bare else config.aims_at(part.module)
    if not aimed:
        return "target_modules does not name its module, so PEFT passes it over"
    is_expert = kind_of(part.tensor) == "expert"
    if part.module.rpartition(".")[2] in confused and not (part.bare or is_expert):
        return "PEFT (0.21) takes modules of this name for single experts of such a model, and puts nothing on this one"
    stated = config.rank_of(part.module)
    if stated != part.rank:
        return f"of rank {part.rank:,} in the file and {stated:,} in adapter_config.json, so PEFT does not load it"
    return None


def _scale(adapter: Adapter, part: Part, habits: Habits) -> float:
    config = adapter.config
    if part.kind is Kind.WHOLE:
        return 1.0
    rslora = config.rslora and habits.rslora is _TAKES
    if habits.scale == "patterns":
        return scale_of(config.alpha_of(part.module), config.rank_of(part.module), rslora=rslora)
    rank = part.rank if habits.scale == "tensor" and part.rank else config.rank
    return scale_of(config.alpha, rank, rslora=rslora)


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
    if config.alpha_pattern and habits.scale != "patterns":
        yield f"{habits.title} passes alpha_pattern over{habits.unless}: one alpha ({config.alpha:g}) for all matrices"
    if config.rank_pattern and habits.scale != "patterns":
        ranks = "the rank of each tensor" if habits.scale == "tensor" else f"one rank ({config.rank})"
        yield f"{habits.title} passes rank_pattern over{habits.unless}: scales follow {ranks}"
    if config.rslora and habits.rslora is _IGNORES:
        yield f"{habits.title} ignores use_rslora: it multiplies by alpha / r where alpha / sqrt(r) is meant"
