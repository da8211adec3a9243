"""The rules of one server, as `servers.json` states them.

slots             what `--max-lora-rank` may be: "any"; "vllm", the values that vLLM accepts
                  (`results.SERVABLE_RANKS`); "default", those that `compare` measures. An adapter may have any rank up
                  to the largest; what it costs is the slot
unlike_ranks      "refused" if each matrix must have the rank r of adapter_config.json
scale             what B A is multiplied by: "config", lora_alpha / r of the configuration, for all tensors; "tensor",
                  lora_alpha / the rank of each tensor; "patterns", as rank_pattern and alpha_pattern say
patterns, rslora, bias, modules_to_save, norms (among modules_to_save, if different), embedding_factors, fused_experts
(factors of experts that share a tensor, `target_parameters`)
                  "honoured", "ignored" (the adapter loads without it), "refused" (the adapter does not load), or
                  "aborts" (the server ends)
tied_head, tied_embedding
                  the same for a LoRA on an output head that the base ties to its embedding, and on that embedding
adapter_names, stray_tensors, missing_factors, unknown_modules, unknown_paths
                  the same for keys such as "lora_A.default.weight"; tensors that are no part of a LoRA; an A without B
                  or a B without A; modules of a name that the base has nowhere; and modules that it has elsewhere
reads_config      whether it also refuses what only adapter_config.json says: a bias, modules_to_save, a rank
coverage          "any" subset of modules, or "every layer" of each type of module that the adapter has
groups            modules that the server fuses: where the adapter has one of a group, it needs those in `required`
modules           the only last components of module names that the server knows; absent if it knows all;
                  `not_modules`: those that it does not load; `ignored_modules`: those on which a LoRA has no effect
no_lora, no_head  the model types on which it loads no LoRA, or none on lm_head
version, run      the version, and the day on which it was run; absent if it was not
read              when its source was read; `only_read`: which of these rules were not run
like              the server whose other rules hold as well: for an older version; `product`: its name without the
                  versions
required_fields   the fields without which the server does not read adapter_config.json
optional_prefixes parts of names that the server ignores, in the keys of adapters and in the base
replaced_prefixes beginnings of such names that it replaces: all that apply to the model's type, the first that fits;
                  `model_types`: for which types, if not for all
carries           kind of tensor -> how: "whole" (in modules_to_save), "factors", or "on request" (factors, if
                  `--include` names it). Plain linear modules are always carried; other kinds are not
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deltarank.errors import UsageError
from deltarank.results import DEFAULT_RANKS, SERVABLE_RANKS, listing
from deltarank.servers.data import load_data
from deltarank.servers.evidence import Evidence
from deltarank.servers.model_families import model_types

DEFAULT_SERVER = "portable"

PEFT = "peft"

_SLOTS = {"any": None, "vllm": SERVABLE_RANKS, "default": DEFAULT_RANKS}


class Handling(StrEnum):
    """What a server does with something that not every adapter has."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    REFUSED = "refused"
    ABORTS = "aborts"


@dataclass(frozen=True)
class FusedModules:
    """Modules of one layer that a server fuses, and those that an adapter with one of them needs."""

    modules: tuple[str, ...]
    required: tuple[str, ...]


@dataclass(frozen=True)
class Server:
    """One server's rules, in the words above.

    slots               the values of --max-lora-rank, which are the servable ranks; None: any
    rank_warning        (rank, sentence) about what happens above this rank; the adapter still loads
    serve_command       a command with {base}, {adapter} and {rank}; "" where there is none
    """

    name: str
    title: str
    evidence: Evidence
    slots: tuple[int, ...] | None
    scale: str
    patterns: Handling
    rslora: Handling
    bias: Handling
    modules_to_save: Handling
    norms: Handling
    embedding_factors: Handling
    fused_experts: Handling
    coverage: str
    carries: Mapping[str, str]
    rank_warning: tuple[int, str] | None
    serve_command: str
    sources: tuple[str, ...]
    tied_head: Handling
    tied_embedding: Handling
    adapter_names: Handling
    stray_tensors: Handling
    missing_factors: Handling
    unknown_modules: Handling
    unknown_paths: Handling
    reads_config: bool
    unlike_ranks: Handling = Handling.HONOURED
    groups: tuple[FusedModules, ...] = ()
    modules: frozenset[str] | None = None
    not_modules: frozenset[str] = frozenset()
    ignored_modules: frozenset[str] = frozenset()
    no_lora: frozenset[str] = frozenset()
    no_head: frozenset[str] = frozenset()
    like: str = ""
    required_fields: tuple[str, ...] = ()
    optional_prefixes: tuple[str, ...] = ()
    prefix_rules: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_rules(cls, name: str, rules: Mapping[str, Any]) -> Server:
        warning = rules.get("rank_warning")
        return cls(
            name=name,
            title=rules["title"],
            evidence=Evidence.from_rules(rules),
            slots=_SLOTS[rules["slots"]],
            scale=rules["scale"],
            patterns=Handling(rules["patterns"]),
            rslora=Handling(rules["rslora"]),
            bias=Handling(rules["bias"]),
            modules_to_save=Handling(rules["modules_to_save"]),
            norms=Handling(rules.get("norms", rules["modules_to_save"])),
            embedding_factors=Handling(rules.get("embedding_factors", Handling.HONOURED)),
            fused_experts=Handling(rules["fused_experts"]),
            coverage=rules["coverage"],
            carries=rules["carries"],
            rank_warning=(warning["above"], warning["sentence"]) if warning else None,
            serve_command=rules["serve_command"],
            sources=tuple(rules["sources"]),
            tied_head=Handling(rules.get("tied_head", Handling.HONOURED)),
            tied_embedding=Handling(rules.get("tied_embedding", Handling.HONOURED)),
            adapter_names=Handling(rules.get("adapter_names", Handling.IGNORED)),
            stray_tensors=Handling(rules.get("stray_tensors", Handling.IGNORED)),
            missing_factors=Handling(rules.get("missing_factors", Handling.IGNORED)),
            unknown_modules=Handling(rules.get("unknown_modules", Handling.IGNORED)),
            unknown_paths=Handling(rules.get("unknown_paths", Handling.IGNORED)),
            reads_config=rules.get("reads_config", True),
            unlike_ranks=Handling(rules.get("unlike_ranks", Handling.HONOURED)),
            groups=_fused_modules(rules["groups"]),
            modules=frozenset(rules["modules"]) if "modules" in rules else None,
            not_modules=frozenset(rules["not_modules"]),
            ignored_modules=frozenset(rules["ignored_modules"]),
            no_lora=frozenset(rules["no_lora"]),
            no_head=frozenset(rules["no_head"]),
            like=rules.get("like", ""),
            required_fields=tuple(rules.get("required_fields", ())),
            optional_prefixes=tuple(rules.get("optional_prefixes", ())),
            prefix_rules=tuple(rules.get("replaced_prefixes", ())),
        )

    @property
    def is_peft(self) -> bool:
        return self.name == PEFT

    @property
    def includes_peft(self) -> bool:
        """Whether an adapter for it promises to load in PEFT, too."""
        return self.name in (PEFT, DEFAULT_SERVER)

    @property
    def is_portable(self) -> bool:
        return self.name == DEFAULT_SERVER

    @property
    def needs_every_layer(self) -> bool:
        return self.coverage == "every layer"

    @property
    def omission(self) -> str:
        """The beginning of a sentence that lists what an adapter for this server does not hold."""
        if self.is_portable:
            return "a portable adapter leaves out"
        return "this adapter leaves out" if self.is_peft else f"{self.title} cannot load"

    @property
    def max_rank(self) -> int | None:
        """The highest rank; None: any rank."""
        return max(self.slots) if self.slots else None

    @property
    def candidate_ranks(self) -> tuple[int, ...]:
        """The ranks that `--rank auto` chooses from."""
        return self.slots or DEFAULT_RANKS

    def slot_for(self, rank: int) -> int:
        """The smallest --max-lora-rank with which the server loads an adapter of this rank."""
        return min((slot for slot in self.slots or () if slot >= rank), default=rank)

    def check_rank(self, rank: int) -> None:
        """Raises UsageError (slug "illegal-rank") for a rank that this server does not load."""
        if self.max_rank is not None and rank > self.max_rank:
            raise UsageError(
                f"Rank {rank} is not accepted by {self.title} (--server {self.name}): the highest is {self.max_rank}.",
                cure=f"Use --rank {self.max_rank} or less.",
                slug="illegal-rank",
            )

    def refuses_model(self, config: Mapping[str, Any]) -> bool:
        """Whether it loads no LoRA on the model with this config.json."""
        return bool(self.no_lora & model_types(config))

    def refuses_head(self, config: Mapping[str, Any]) -> bool:
        """Whether it loads no LoRA on the lm_head of this model, tied or not."""
        return bool(self.no_head & model_types(config))

    def replaced_prefixes(self, config: Mapping[str, Any]) -> Mapping[str, str]:
        """Beginnings of names -> what this server replaces them by, on the model with this config.json."""
        kind = config.get("model_type")
        return {
            rule["prefix"]: rule["becomes"]
            for rule in self.prefix_rules
            if "model_types" not in rule or kind in rule["model_types"]
        }

    def partners(self, module: str, *, required: bool = False) -> set[str]:
        """The modules that the server fuses with one of this path; only those without which it does not load it."""
        parent, dot, name = module.rpartition(".")
        groups = [group for group in self.groups if name in group.modules]
        mates = {mate for group in groups for mate in (group.required if required else group.modules)}
        return {f"{parent}{dot}{mate}" for mate in mates - {name}}

    def knows_module(self, name: str) -> bool:
        """Whether it loads a LoRA on a module with this last component of its name, and applies it."""
        return name not in self.not_modules | self.ignored_modules and (self.modules is None or name in self.modules)


def _fused_modules(rows: Iterable[Mapping[str, Any]]) -> tuple[FusedModules, ...]:
    return tuple(dict.fromkeys(FusedModules(tuple(row["modules"]), tuple(row["required"])) for row in rows))


def get_server(name: str) -> Server:
    """The rules of one server.

    Raises:
        UsageError: (slug "bad-server") there are no rules for a server of this name.
    """
    if name not in server_names():
        raise UsageError(
            f"There is no server {name!r} in the list of known servers.",
            cure=f"Choose one of {listing(server_names())}.",
            slug="bad-server",
        )
    return Server.from_rules(name, _rules(name))


_LIMITS = ("groups", "not_modules", "ignored_modules", "no_lora", "no_head")


def _rules(name: str) -> dict[str, Any]:
    """The row of one server, with those of the row that it is like."""
    row = load_data()["servers"][name]
    rules: dict[str, Any] = {limit: [] for limit in _LIMITS} | (_rules(row["like"]) if "like" in row else {}) | row
    if name == DEFAULT_SERVER:  # it loads everywhere: each limit of each server
        others = [_rules(other) for other in server_names() if other not in (name, PEFT)]
        for limit in _LIMITS:
            rules[limit] = [entry for other in others for entry in other[limit]]
        rules["not_modules"] += rules.pop("ignored_modules")
        rules["ignored_modules"] = []
        rules["modules"] = set.intersection(*(set(other["modules"]) for other in others if "modules" in other))
    return rules


def known_servers() -> list[Server]:
    return [get_server(name) for name in server_names()]


def server_names() -> list[str]:
    return list(load_data()["servers"])


def rules_date() -> str:
    """When the rules were read from the servers' sources: "2026-11"."""
    return str(load_data()["read"])
