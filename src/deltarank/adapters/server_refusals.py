"""The adapters that a server does not load, by the rules of servers.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deltarank.adapters.read import AdapterPart, LoraAdapter, PartKind
from deltarank.checkpoints import quoted
from deltarank.errors import AdapterError
from deltarank.results import listing
from deltarank.servers import DEFAULT_SERVER, Handling, Server


def check_loadable(adapter: LoraAdapter, server: Server) -> None:
    """Raises AdapterError (slug "adapter-refused") if the server does not load this adapter."""
    reasons = list(_refusals(adapter, server))
    if reasons:
        subject = "Not every server loads" if server.name == DEFAULT_SERVER else f"{server.title} does not load"
        raise AdapterError(
            f"{subject} this adapter: {listing(reasons, most=4)}.",
            cure="Omit --server to measure it as PEFT applies it, or make another with `deltarank extract --server`.",
            slug="adapter-refused",
        )


def _refusals(adapter: LoraAdapter, server: Server) -> Iterator[str]:
    config, refused = adapter.config, Handling.REFUSED
    loras = [part for part in adapter.parts if part.is_lora]
    highest = max([config.rank, *(part.rank for part in loras)])
    if server.max_rank is not None and highest > server.max_rank:
        yield f"it has rank {highest:,}, and the highest servable rank is {server.max_rank}"
    wholes = [part for part in adapter.parts if part.kind is PartKind.WHOLE and handling_of(part, server) is refused]
    if wholes or (config.modules_to_save and server.modules_to_save is refused):
        names = [quoted(part.tensor) for part in wholes] or [quoted(name) for name in config.modules_to_save]
        yield f"it contains whole tensors ({listing(names, most=2)})"
    has_biases = any(part.kind is PartKind.BIAS for part in adapter.parts) or config.bias != "none"
    if server.bias is refused and (has_biases or config.lora_bias):
        yield "it contains biases"
    if server.fused_experts is refused and config.parameters:
        yield "it has LoRAs on bare parameters (fused experts)"
    if server.rslora is refused and config.rslora:
        yield "it is rank-stabilised (use_rslora)"
    if server.patterns is refused:
        if config.has_patterns:
            yield "it has a rank_pattern or an alpha_pattern"
        if (module := _module_of_mixed_ranks(loras)) is not None:
            yield f"the layers of {quoted(module)} have different ranks"


def _module_of_mixed_ranks(loras: Iterable[AdapterPart]) -> str | None:
    """A module whose rank is not the same in all layers."""
    ranks: dict[str, int] = {}
    for part in loras:
        leaf = part.module.rsplit(".", 1)[-1]
        if ranks.setdefault(leaf, part.rank) != part.rank:
            return leaf
    return None


def handling_of(part: AdapterPart, server: Server) -> Handling:
    """What the server does with a part; of a LoRA, with its kind of tensor."""
    if part.kind is PartKind.EMBEDDING:
        return server.embedding_factors
    if part.is_lora:
        return server.fused_experts if part.expert else Handling.HONOURED
    if part.kind is PartKind.BIAS or part.tensor.endswith(".bias"):
        return server.bias
    is_norm = part.module.rsplit(".", 1)[-1].endswith("norm")
    return server.norms if is_norm else server.modules_to_save
