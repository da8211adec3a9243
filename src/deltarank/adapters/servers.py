"""What servers do with an adapter: the rules of `servers.json`, which are dated and name their sources.

scale             by what B A is multiplied: "config", lora_alpha / r of the configuration for all tensors alike;
                  "tensor", lora_alpha / the rank of each; "patterns", as rank_pattern and alpha_pattern say
patterns, rslora, bias, modules_to_save, stacks (factors of experts that share a tensor, `target_parameters`)
                  "honoured", "ignored" (loads, and does without it), or "refused" (does not load)
coverage          "any" subset of modules, or "whole types": every layer of a type that is there at all
carries           a kind of tensor -> how: "whole" (in modules_to_save), "factors", "asked" (factors, if included by
                  name). Plain linear modules are always carried; a kind that is not named is not
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from deltarank.errors import UsageError
from deltarank.results import listing

DEFAULT_SERVER = "portable"


@dataclass(frozen=True)
class Server:
    """One server's rules, by the words above.

    ranks       the legal ones; None: any
    warn_above  (rank, sentence): beyond this rank it works, but
    patterns_read_by
                versions that do otherwise than `patterns` says, in words; "" where none is known
    serve       a command with {base}, {adapter} and {rank}; "" where there is none
    """

    name: str
    title: str
    ranks: tuple[int, ...] | None
    scale: str
    patterns: str
    rslora: str
    bias: str
    modules_to_save: str
    stacks: str
    coverage: str
    carries: Mapping[str, str]
    warn_above: tuple[int, str] | None
    serve: str
    sources: tuple[str, ...]
    patterns_read_by: str = ""

    @property
    def wants_whole_types(self) -> bool:
        return self.coverage == "whole types"

    @property
    def leaves_out(self) -> str:
        """Words to stand before what is not in an adapter for this server."""
        if self.name == DEFAULT_SERVER:
            return "a portable adapter leaves out"
        return "this adapter leaves out" if self.name == "peft" else f"{self.title} cannot load"

    @property
    def candidates(self) -> tuple[int, ...]:
        """The ranks that `--rank auto` chooses among."""
        return self.ranks or tuple(_data()["candidates"])

    def refuse_rank(self, rank: int) -> None:
        """Raises UsageError (slug "illegal-rank") for a rank that this server does not load."""
        if self.ranks is not None and rank not in self.ranks:
            near = min(self.ranks, key=lambda legal: (legal < rank, abs(legal - rank)))
            raise UsageError(
                f"rank {rank} is not legal for {self.title} (--server {self.name}); "
                f"legal are {listing([str(legal) for legal in self.ranks], most=20)}.",
                cure=f"Give --rank {near}; a matrix of a smaller rank is padded with zeros, which costs room alone.",
                slug="illegal-rank",
            )


@dataclass(frozen=True)
class Kind:
    """A kind of tensor that servers treat apart, and what it is called in the plural."""

    kind: str
    words: str
    patterns: tuple[re.Pattern[str], ...]


def server(name: str) -> Server:
    """Raises UsageError (slug "bad-server") for one that nobody knows."""
    known = _data()["servers"]
    if name not in known:
        raise UsageError(
            f"{name!r} is not a server whose rules are known.",
            cure=f"Choose one of {listing(server_names())}.",
            slug="bad-server",
        )
    row = known[name]
    above = row.get("warn_above")
    return Server(
        name=name,
        title=row["title"],
        ranks=tuple(row["ranks"]) if row["ranks"] else None,
        scale=row["scale"],
        patterns=row["patterns"],
        rslora=row["rslora"],
        bias=row["bias"],
        modules_to_save=row["modules_to_save"],
        stacks=row["stacks"],
        coverage=row["coverage"],
        carries=row["carries"],
        warn_above=(above["rank"], above["says"]) if above else None,
        serve=row["serve"],
        sources=tuple(row["sources"]),
        patterns_read_by=row.get("patterns_read_by", ""),
    )


def server_names() -> list[str]:
    return list(_data()["servers"])


def rules_date() -> str:
    """When the rules were read: "2026-11"."""
    return str(_data()["read"])


def kind_of(name: str) -> str | None:
    """ "norm", "bias", "lm_head", "embedding", "router" or "expert", by a tensor's name; None: none of these."""
    return next((k.kind for k in _kinds() if any(pattern.match(name) for pattern in k.patterns)), None)


@dataclass(frozen=True)
class Stack:
    """Experts in one tensor, (experts, ...), which PEFT reaches as a bare parameter of their module.

    parameters    of that module, in the order in which the model registers them
    inputs_first  each expert is stored as inputs x outputs
    """

    parameters: tuple[str, ...]
    inputs_first: bool

    @classmethod
    def of(cls, tensor: str, config: Mapping[str, Any]) -> Stack | None:
        """None for a tensor of which that is not known."""
        module, _, leaf = tensor.rpartition(".")
        for row in _data()["stacks"]:
            known = config.get("model_type") in row["model_types"] and leaf in row["parameters"]
            if known and fnmatch.fnmatchcase(module, row["container"]):
                return cls(tuple(row["parameters"]), row["inputs_first"])
        return None


def taken_for_experts(config: Mapping[str, Any]) -> frozenset[str]:
    """The last words of modules that PEFT takes for single experts of this model, and fuses."""
    rows = _data()["fused_by_peft"]["families"]
    kind = config.get("model_type")
    return frozenset(name for row in rows if kind in row["model_types"] for name in row["names"])


def router_in_peft(module: str, config: Mapping[str, Any]) -> str | None:
    """The module by which PEFT reaches a router, whichever way files spell it; None where that is not known."""
    for row in _routers(config):
        for end in (row["in_files"], row["in_peft"]):
            if module.endswith(f".{end}"):
                return module.removesuffix(end) + str(row["in_peft"])
    return None


def router_in_files(module: str, config: Mapping[str, Any]) -> str:
    """A router of PEFT's by the name that files have for it; what is none stays as it is."""
    for row in _routers(config):
        if module.endswith(f".{row['in_peft']}"):
            return module.removesuffix(row["in_peft"]) + str(row["in_files"])
    return module


def _routers(config: Mapping[str, Any]) -> list[Mapping[str, str]]:
    rows = _data()["routers"]["families"]
    return [row for row in rows if config.get("model_type") in row["model_types"]]


def words_for(kind: str) -> str:
    """A kind in the plural: "norm" -> "norms"."""
    return next((k.words for k in _kinds() if k.kind == kind), kind)


def is_transposed(name: str, config: Mapping[str, Any]) -> bool:
    """Whether this model stores this matrix as inputs x outputs."""
    rule = _data()["transposed"]
    return config.get("model_type") in rule["model_types"] and any(p.match(name) for p in _compiled(rule["names"]))


@cache
def _kinds() -> tuple[Kind, ...]:
    return tuple(Kind(row["kind"], row["words"], _compiled(row["names"])) for row in _data()["kinds"])


def _compiled(globs: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(fnmatch.translate(glob)) for glob in globs)


@cache
def _data() -> dict[str, Any]:
    text = files("deltarank.adapters").joinpath("servers.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
