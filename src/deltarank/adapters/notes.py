"""Notes on an adapter: what a server does differently from PEFT, and targets that the file has nothing for."""

from __future__ import annotations

from collections.abc import Iterator

from deltarank.adapters.read import LoraAdapter
from deltarank.adapters.targets import Target, TensorIndex
from deltarank.checkpoints import Pair, quoted
from deltarank.results import count, listing
from deltarank.servers import Handling, Server
from deltarank.tensor_names import kind_of_tensor


def notes_on_semantics(adapter: LoraAdapter, server: Server) -> Iterator[str]:
    """What of the configuration the server, or this package, reads differently from PEFT."""
    config = adapter.config
    if config.targets.not_run or config.excluded.not_run:
        yield (
            "target_modules or exclude_modules is a regular expression that is too complex to run: every tensor of the "
            "adapter is assumed to be a target"
        )
    if config.unknown:
        names = listing(list(config.unknown), most=3)
        yield f"adapter_config.json has fields that PEFT 0.21 does not have; they were ignored: {names}"
    if config.alpha_pattern and server.scale != "patterns":
        yield f"{server.title} ignores alpha_pattern: it uses one alpha ({config.alpha:g}) for all matrices"
    if config.rank_pattern and server.scale != "patterns":
        ranks = "the rank of each tensor" if server.scale == "tensor" else f"one rank ({config.rank})"
        yield f"{server.title} ignores rank_pattern: it computes scales from {ranks}"
    if config.rslora and server.rslora is Handling.IGNORED:
        yield f"{server.title} ignores use_rslora: it scales by alpha / r instead of alpha / sqrt(r)"


def notes_on_targets(adapter: LoraAdapter, tensors: TensorIndex) -> Iterator[str]:
    """The matrices that target_modules names and that the file has no factors for.

    Args:
        adapter: with all parts of the file.
    """
    config = adapter.config
    if config.targets.selects_all or config.targets.not_run or not config.layers.is_all:
        return
    present = {tensors.find(part.tensor) or tensors.find_similar(part.tensor) for part in adapter.parts}
    present |= {tensors.find(f"{entry.module}.weight") for entry in adapter.unused if entry.module}
    files = [target.base.tensor for target in tensors.targets if _is_linear(target)]
    modules = [tensors.names.of_file(name).removesuffix(".weight") for name in files]
    named = {name: tensors.find(f"{name}.weight") for name in modules if config.targets_module(name)}
    missing = [name for name, target in named.items() if target is not None and target not in present]
    if missing:
        yield (
            f"target_modules names {count(len(missing), 'matrix', 'matrices')} that the file has no factors for; "
            f"nothing is added there: {listing([quoted(name) for name in missing], most=3)}"
        )


def _is_linear(target: Target) -> bool:
    is_weight = isinstance(target, Pair) and target.name.endswith(".weight")
    return is_weight and kind_of_tensor(target.base.tensor) is None
