"""The experts of a mixture-of-experts model: which of them get factors, and how PEFT addresses them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from deltarank.architectures import Architecture
from deltarank.checkpoints import Checkpoint, Pair
from deltarank.jobs.extract.layout import FusedExpert, Target
from deltarank.jobs.extract.module_names import ModuleNames
from deltarank.jobs.extract.reasons import UNKNOWN_EXPERT, UNKNOWN_FUSED_EXPERT, omission_reason
from deltarank.results import listing
from deltarank.servers import PEFT, ExpertLayout, Handling, Server, modules_fused_by_peft
from deltarank.tensor_names import EXPERT, kind_of_tensor


def is_slice(pair: Pair) -> bool:
    """Whether it is one of several matrices in one tensor of the finetune."""
    return pair.name.startswith(f"{pair.finetune.tensor}[")


def fused_expert(pair: Pair, base: Checkpoint) -> FusedExpert | None:
    """None for any other matrix, and where the layout of the tensor is not known."""
    layout = ExpertLayout.of(pair.base.tensor, base.config) if is_slice(pair) else None
    if layout is None:
        return None
    index = int(pair.name.rpartition("[")[2].rstrip("]"))
    return FusedExpert(index, base.tensors[pair.base.tensor].shape[0], layout)


def name_for_peft(pair: Pair, base: Checkpoint) -> str:
    """The base's name; the finetune's for an expert that only the base stores fused. PEFT knows both."""
    return pair.base.tensor if pair.base.tensor in base.tensors else pair.name


def refusal_of_expert(pair: Pair, base: Checkpoint, server: Server, *, selected_by_name: bool) -> str | None:
    """The reason why an expert gets no factors; None if it does."""
    rule = server.carries.get(EXPERT)
    if rule is None or (rule == "on request" and not selected_by_name):
        return omission_reason(EXPERT, server)
    if is_slice(pair) and server.fused_experts is not Handling.HONOURED:
        return f"{server.omission} experts that share a tensor"
    if is_slice(pair):
        fused = fused_expert(pair, base)
        return None if fused is not None and fused.experts > 1 else UNKNOWN_FUSED_EXPERT
    module_name = name_for_peft(pair, base).rpartition(".")[0].rpartition(".")[2]
    is_addressed = not server.is_peft or module_name in modules_fused_by_peft(base.config)
    return None if is_addressed else UNKNOWN_EXPERT


def separate_from_experts(
    targets: Sequence[Target], names: ModuleNames, server: Server
) -> tuple[list[Target], str | None]:
    """Keeps PEFT from taking other modules for experts, which it recognises by the last component of a path alone.

    For PEFT such modules are addressed as parameters. Servers need their names as they are, so for them the targets
    stay, with a note that PEFT will not load these. (Where the class is known, a portable adapter leaves them out, as
    everything that PEFT does not load.)
    """
    fused = modules_fused_by_peft(names.base.config)
    mistaken = [target for target in targets if target.module_name in fused and not target.is_expert]
    if not mistaken or not any(kind_of_tensor(name) == EXPERT for name in names.base.tensors):
        return list(targets), None
    if server.includes_peft and not server.is_peft and isinstance(names.architecture, Architecture):
        return list(targets), None
    if not server.is_peft:
        return list(targets), _note_on_mistaken(sorted({target.pair.module for target in mistaken}))
    tensors = {target.pair.name for target in mistaken}
    return [
        replace(target, module=names.parameter(target.pair.base.tensor), as_parameter=True)
        if target.pair.name in tensors
        else target
        for target in targets
    ], None


def _note_on_mistaken(modules: list[str]) -> str:
    return (
        f"PEFT (0.21) mistakes {listing(modules, most=3)} of this model for experts when it loads the adapter, and "
        f"skips {'it' if len(modules) == 1 else 'them'}. For use with PEFT, extract with --server peft"
    )


def are_experts_complete(targets: Iterable[Target], base: Checkpoint, server: Server) -> bool:
    """Whether all experts of all layers are targets: readers fuse the experts of a layer into one tensor.

    For PEFT, which finds experts by the last component of their path, no other target may share theirs.
    """
    targets = list(targets)
    experts = [target for target in targets if target.is_expert]
    stored = sum(
        info.entries for name, info in base.tensors.items() if kind_of_tensor(name) == EXPERT and len(info.shape) > 1
    )
    if stored != sum(target.pair.entries for target in experts):
        return False
    names = {target.module_name for target in experts if not target.as_parameter}
    others = {target.module_name for target in targets if not target.is_expert and not target.as_parameter}
    return server.name != PEFT or not names & others
