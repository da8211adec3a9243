"""The adapters that a server does not load, by the rules of servers.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deltarank.adapters.keys import leaf, parse_key
from deltarank.adapters.parts import AdapterPart, PartKind
from deltarank.adapters.placing import EXPERTS
from deltarank.adapters.read import LoraAdapter
from deltarank.adapters.reading import ReaderNames
from deltarank.adapters.server_limits import beyond_limits
from deltarank.checkpoints import Checkpoint, quoted
from deltarank.errors import AdapterError
from deltarank.results import listing
from deltarank.servers import DEFAULT_SERVER, Handling, Server

_BASE_LAYER = "base_layer"


def check_loadable(adapter: LoraAdapter, server: Server, names: ReaderNames, base: Checkpoint) -> None:
    """Raises AdapterError (slug "adapter-refused") if the server does not load this adapter, or aborts on it.

    Args:
        names: the server's names of the base's tensors.
    """
    if server.tied_embedding is Handling.ABORTS and (reasons := list(_tied_embeddings(adapter, names))):
        _raise_refused(f"{server.title} aborts when it loads this adapter", reasons)
    reasons = [
        *beyond_limits(adapter, server, names, base),
        *_refused_kinds(adapter, server),
        *_refused_names(adapter, server, names, base),
    ]
    if reasons:
        is_every = server.name == DEFAULT_SERVER
        _raise_refused(
            f"{'Not every server loads' if is_every else f'{server.title} does not load'} this adapter", reasons
        )


def _raise_refused(subject: str, reasons: list[str]) -> None:
    raise AdapterError(
        f"{subject}: {listing(reasons, most=4)}.",
        cure="Omit --server to measure it as PEFT applies it, or make another with `deltarank extract --server`.",
        slug="adapter-refused",
    )


def _refused_kinds(adapter: LoraAdapter, server: Server) -> Iterator[str]:
    config, refused = adapter.config, Handling.REFUSED
    loras = [part for part in adapter.parts if part.is_lora]
    highest = max([config.rank if server.reads_config else 0, *(part.rank for part in loras)])
    if server.max_rank is not None and highest > server.max_rank:
        yield f"it has rank {highest:,}, and the highest is {server.max_rank}"
    wholes = [part for part in adapter.parts if part.kind is PartKind.WHOLE and handling_of(part, server) is refused]
    declared = config.modules_to_save if server.reads_config else ()
    if wholes or (declared and server.modules_to_save is refused):
        shown = [quoted(part.tensor) for part in wholes] or [quoted(name) for name in declared]
        yield f"it contains whole tensors ({listing(shown, most=2)})"
    has_biases = any(part.kind is PartKind.BIAS for part in adapter.parts)
    declares_biases = server.reads_config and (config.bias != "none" or config.lora_bias)
    if server.bias is refused and (has_biases or declares_biases):
        yield "it contains biases"
    if server.fused_experts is refused and config.parameters:
        yield "it has LoRAs on bare parameters (fused experts)"
    if any(part.is_convolution for part in loras):
        yield "it has LoRAs on convolutions"
    if server.rslora is refused and config.rslora:
        yield "it is rank-stabilised (use_rslora)"
    if server.patterns is refused:
        if config.has_patterns:
            yield "it has a rank_pattern or an alpha_pattern"
        if (module := _module_of_mixed_ranks(loras)) is not None:
            yield f"the layers of {quoted(module)} have different ranks"


def _refused_names(adapter: LoraAdapter, server: Server, names: ReaderNames, base: Checkpoint) -> Iterator[str]:
    refused = Handling.REFUSED
    named = [part for part in adapter.parts if part.adapter_name]
    if named and server.adapter_names is refused:
        yield f"its keys hold the name of an adapter ({quoted(named[0].up.name)})"
    strays = [entry for entry in adapter.unused if parse_key(entry.name) is None]
    if strays and server.stray_tensors is refused:
        yield f"it contains tensors that are no part of a LoRA ({quoted(strays[0].name)})"
    halves = [entry for entry in adapter.unused if entry.module]
    if halves and server.missing_factors is refused:
        yield f"a factor is missing or does not fit ({quoted(halves[0].name)}: {halves[0].reason})"
    unknown = [part for part in adapter.parts if part.is_lora and not _is_known(part, names, base)]
    if server.unknown_paths is not refused:
        leaves = {tensor.removesuffix(".weight").rpartition(".")[2] for tensor in base.tensors}
        leaves.add(_BASE_LAYER)  # vLLM does not look at modules of this name, which PEFT has around experts
        unknown = [part for part in unknown if part.module.rpartition(".")[2] not in leaves]
    if unknown and server.unknown_modules is refused:
        yield f"the base has no module {quoted(unknown[0].module)}"
    if server.tied_head is refused:
        heads = [part for part in adapter.parts if part.is_lora and part.tensor in names.tied]
        if heads:
            yield f"it has a LoRA on {quoted(heads[0].module)}, which the base ties to its embedding"
    if server.tied_embedding is refused:
        yield from _tied_embeddings(adapter, names)


def _tied_embeddings(adapter: LoraAdapter, names: ReaderNames) -> Iterator[str]:
    """A LoRA on an embedding that the base also uses as its output head."""
    tied = set(names.tied.values())
    for part in adapter.parts:
        if part.is_lora and part.tensor in tied:
            yield f"it has a LoRA on {quoted(part.module)}, which the base also uses as its output head"


def _is_known(part: AdapterPart, names: ReaderNames, base: Checkpoint) -> bool:
    """Whether the base has the module; experts are looked up when they are placed."""
    if EXPERTS in part.module or part.tensor in names.tied:
        return True
    tensor = names.in_files(part.tensor)
    return tensor is not None and tensor in base.tensors


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
    if part.is_lora and leaf(part.module) in server.ignored_modules:
        return Handling.IGNORED
    if part.is_lora:
        return server.fused_experts if part.expert else Handling.HONOURED
    if part.kind is PartKind.BIAS or part.tensor.endswith(".bias"):
        return server.bias
    is_norm = part.module.rsplit(".", 1)[-1].endswith("norm")
    return server.norms if is_norm else server.modules_to_save
