"""The models, modules, ranks and shapes on which a server loads no LoRA, by the rules of servers.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltarank.adapters.keys import leaf
from deltarank.adapters.parts import AdapterPart, PartKind
from deltarank.adapters.placing import EXPERTS
from deltarank.adapters.read import LoraAdapter
from deltarank.adapters.reading import ReaderNames
from deltarank.checkpoints import Checkpoint, dimensions, quoted
from deltarank.servers import Handling, Server, is_transposed
from deltarank.tensor_names import LM_HEAD, kind_of_tensor


def beyond_limits(adapter: LoraAdapter, server: Server, names: ReaderNames, base: Checkpoint) -> Iterator[str]:
    """Why the server does not load the adapter on this base, a clause each."""
    of_type = f"models of the type {base.config.get('model_type')!a}"
    if server.refuses_model(base.config):
        yield f"it loads no LoRA on {of_type}"
        return
    missing = [field for field in server.required_fields if field not in adapter.config.for_peft]
    if missing:
        yield f"its adapter_config.json has no {missing[0]}, for which PEFT has a default"
    loras = [part for part in adapter.parts if part.is_lora]
    heads = [part for part in loras if kind_of_tensor(part.tensor) == LM_HEAD]
    if heads and server.refuses_head(base.config):
        yield f"it loads no LoRA on {quoted(heads[0].module)} of {of_type}"
    outside = [part for part in loras if EXPERTS not in part.module]
    modules = dict.fromkeys(leaf(part.module) for part in outside)
    strange = [name for name in modules if not (server.knows_module(name) or name in server.ignored_modules)]
    if strange:
        yield f"it loads no LoRA on modules named {quoted(strange[0])}"
    unlike = [part for part in outside if part.rank != adapter.config.rank]
    if unlike and server.unlike_ranks is Handling.REFUSED:
        ranks = f"has rank {unlike[0].rank:,}, and r is {adapter.config.rank:,}"
        yield f"{quoted(unlike[0].module)} {ranks}: all must have the rank r of adapter_config.json"
    yield from _missing_partners(outside, server, names, base)
    if server.missing_factors is Handling.REFUSED:
        yield from _misfits(outside, names, base)


def _missing_partners(
    loras: Sequence[AdapterPart], server: Server, names: ReaderNames, base: Checkpoint
) -> Iterator[str]:
    """The first module without a LoRA that the server fuses with one that has one, and needs."""
    present = {part.module for part in loras}
    for part in loras:
        for needed in sorted(server.partners(part.module, required=True) - present):
            if names.in_files(f"{needed}.weight") in base.tensors:
                parent, _, name = part.module.rpartition(".")
                missing = quoted(leaf(needed))
                yield f"{quoted(parent)} has a LoRA on {quoted(name)} and none on {missing}, which it needs"
                return


def _misfits(loras: Sequence[AdapterPart], names: ReaderNames, base: Checkpoint) -> Iterator[str]:
    """The first LoRA that has other sizes than its tensor."""
    for part in loras:
        tensor = base.tensors.get(names.in_files(part.tensor) or "")
        if tensor is None or part.kind is PartKind.EMBEDDING or part.is_parameter or part.expert:
            continue
        shape = (part.outputs, part.inputs)
        if shape != (tensor.shape[::-1] if is_transposed(part.tensor, base.config) else tensor.shape):
            yield f"the LoRA on {quoted(part.module)} is {dimensions(shape)}, and the tensor {dimensions(tensor.shape)}"
            return
