"""How servers read an adapter, and what they refuse, by the rules of servers.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from deltarank.adapters.read import AdapterPart, LoraAdapter, PartKind
from deltarank.errors import AdapterError
from deltarank.results import listing
from deltarank.servers import Server, get_server


class Handling(Enum):
    """What a server does with something that not every adapter has."""

    TAKES = "honoured"
    IGNORES = "ignored"
    REFUSES = "refused"


PEFT, _TITLE = "peft", "PEFT"
TAKES, IGNORES, REFUSES = Handling.TAKES, Handling.IGNORES, Handling.REFUSES

# What servers.json does not say: a converter that takes norms, which are then ignored; a table that takes no factors.
_FORGETS_NORMS = frozenset({"llama.cpp"})
_NO_INPUT_FACTORS = frozenset({"lorax"})


@dataclass(frozen=True)
class ServerSemantics:
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
    patterns: Handling
    rslora: Handling
    most_rank: int | None
    wholes: Handling
    norms: Handling
    biases: Handling
    inputs: Handling
    stacks: Handling
    all_layers: bool
    unless: str = ""

    @property
    def is_peft(self) -> bool:
        return self.title == _TITLE

    @classmethod
    def of(cls, rules: Server) -> ServerSemantics:
        wholes = Handling(rules.modules_to_save)
        return cls(
            title=rules.title,
            scale=rules.scale,
            patterns=Handling(rules.patterns),
            rslora=Handling(rules.rslora),
            most_rank=max(rules.ranks) if rules.ranks else None,
            wholes=wholes,
            norms=IGNORES if rules.name in _FORGETS_NORMS else wholes,
            biases=Handling(rules.bias),
            inputs=IGNORES if rules.name in _NO_INPUT_FACTORS else TAKES,
            stacks=Handling(rules.fused_experts),
            all_layers=rules.needs_every_layer,
            unless=f" ({rules.patterns_exception})" if rules.patterns_exception else "",
        )


def semantics_of(name: str | None) -> ServerSemantics:
    """Raises UsageError (slug "bad-server") for a server that nobody knows."""
    return ServerSemantics.of(get_server(name or PEFT))


def check_loadable(adapter: LoraAdapter, semantics: ServerSemantics) -> None:
    reasons = list(_refusals(adapter, semantics))
    if reasons:
        raise AdapterError(
            f"{_loader(semantics)} this adapter: {listing(reasons, most=4)}.",
            cure="Leave out --server to measure it as PEFT applies it, or make one with `deltarank extract --server`.",
            slug="adapter-refused",
        )


def _loader(semantics: ServerSemantics) -> str:
    return "Not every server loads" if semantics.title == "every server" else f"{semantics.title} does not load"


def _refusals(adapter: LoraAdapter, semantics: ServerSemantics) -> Iterator[str]:
    loras = [part for part in adapter.parts if part.is_lora]
    highest = max([adapter.config.rank, *(part.rank for part in loras)])
    if semantics.most_rank is not None and highest > semantics.most_rank:
        yield f"it has rank {highest:,}, and the highest possible is {semantics.most_rank}"
    wholes = [part for part in adapter.parts if part.kind is PartKind.WHOLE and handling_of(part, semantics) is REFUSES]
    if wholes or (adapter.config.modules_to_save and semantics.wholes is REFUSES):
        named = [ascii(part.tensor)[1:-1][:80] for part in wholes] or list(adapter.config.modules_to_save)
        yield f"it holds whole tensors ({listing(named, most=2)})"
    biases = any(part.kind is PartKind.BIAS for part in adapter.parts) or adapter.config.bias != "none"
    if semantics.biases is REFUSES and (biases or adapter.config.lora_bias):
        yield "it holds biases"
    if semantics.stacks is REFUSES and adapter.config.parameters:
        yield "it has LoRAs on bare parameters (fused experts)"
    if semantics.rslora is REFUSES and adapter.config.rslora:
        yield "it is rank-stabilised (use_rslora)"
    if semantics.patterns is REFUSES:
        if adapter.config.has_patterns:
            yield "it has a rank_pattern or an alpha_pattern"
        if (mixed := _mixed(loras)) is not None:
            yield f"the layers of {mixed} have unlike ranks"


def _mixed(loras: Iterable[AdapterPart]) -> str | None:
    """A module that has another rank in another layer."""
    ranks: dict[str, int] = {}
    for part in loras:
        leaf = part.module.rsplit(".", 1)[-1]
        if ranks.setdefault(leaf, part.rank) != part.rank:
            return ascii(leaf)[1:-1]
    return None


def handling_of(part: AdapterPart, semantics: ServerSemantics) -> Handling:
    """Of a whole tensor or a bias."""
    if part.kind is PartKind.BIAS or part.tensor.endswith(".bias"):
        return semantics.biases
    is_norm = part.module.rsplit(".", 1)[-1].endswith("norm")
    return semantics.norms if is_norm else semantics.wholes
