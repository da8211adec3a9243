"""The rules of one server, as `servers.json` states them.

ranks             "any"; "vllm", the ranks that vLLM accepts (`results.SERVABLE_RANKS`); "default", the ranks that
                  every server accepts (`results.DEFAULT_RANKS`)
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
carries           kind of tensor -> how: "whole" (in modules_to_save), "factors", or "on request" (factors, if
                  `--include` names it). Plain linear modules are always carried; other kinds are not
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deltarank.errors import UsageError
from deltarank.results import DEFAULT_RANKS, SERVABLE_RANKS, listing
from deltarank.servers.data import load_data

DEFAULT_SERVER = "portable"

PEFT = "peft"

_RANKS = {"any": None, "vllm": SERVABLE_RANKS, "default": DEFAULT_RANKS}


class Handling(StrEnum):
    """What a server does with something that not every adapter has."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    REFUSED = "refused"
    ABORTS = "aborts"


@dataclass(frozen=True)
class Server:
    """One server's rules, in the words above.

    ranks               the servable ranks; None: any rank
    rank_warning        (rank, sentence) about what happens above this rank; the adapter still loads
    patterns_exception  the versions that do not treat patterns as `patterns` says; "" where none is known
    serve_command       a command with {base}, {adapter} and {rank}; "" where there is none
    """

    name: str
    title: str
    ranks: tuple[int, ...] | None
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
    patterns_exception: str = ""

    @classmethod
    def from_rules(cls, name: str, rules: Mapping[str, Any]) -> Server:
        warning = rules.get("rank_warning")
        return cls(
            name=name,
            title=rules["title"],
            ranks=_RANKS[rules["ranks"]],
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
            patterns_exception=rules.get("patterns_exception", ""),
        )

    @property
    def is_peft(self) -> bool:
        return self.name == PEFT

    @property
    def includes_peft(self) -> bool:
        """Whether an adapter for it promises to load in PEFT, too."""
        return self.name in (PEFT, DEFAULT_SERVER)

    @property
    def needs_every_layer(self) -> bool:
        return self.coverage == "every layer"

    @property
    def omission(self) -> str:
        """The beginning of a sentence that lists what an adapter for this server does not hold."""
        if self.name == DEFAULT_SERVER:
            return "a portable adapter leaves out"
        return "this adapter leaves out" if self.is_peft else f"{self.title} cannot load"

    @property
    def max_rank(self) -> int | None:
        """The highest servable rank; None: any rank."""
        return max(self.ranks) if self.ranks else None

    @property
    def candidate_ranks(self) -> tuple[int, ...]:
        """The ranks that `--rank auto` chooses from."""
        return self.ranks or DEFAULT_RANKS

    def check_rank(self, rank: int) -> None:
        """Raises UsageError (slug "illegal-rank") for a rank that this server does not load."""
        if self.ranks is not None and rank not in self.ranks:
            near = min(self.ranks, key=lambda servable: (servable < rank, abs(servable - rank)))
            raise UsageError(
                f"Rank {rank} is not accepted by {self.title} (--server {self.name}); "
                f"servable ranks are {listing([str(servable) for servable in self.ranks], most=20)}.",
                cure=f"Use --rank {near}. A matrix of a lower rank is padded with zeros, which costs only disk space.",
                slug="illegal-rank",
            )


def get_server(name: str) -> Server:
    """The rules of one server.

    Raises:
        UsageError: (slug "bad-server") there are no rules for a server of this name.
    """
    servers = load_data()["servers"]
    if name not in servers:
        raise UsageError(
            f"There is no server {name!r} in the list of known servers.",
            cure=f"Choose one of {listing(server_names())}.",
            slug="bad-server",
        )
    return Server.from_rules(name, servers[name])


def server_names() -> list[str]:
    return list(load_data()["servers"])


def rules_date() -> str:
    """When the rules were read from the servers' sources: "2026-11"."""
    return str(load_data()["read"])
