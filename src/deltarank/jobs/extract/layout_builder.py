"""Decides from headers alone what an adapter for a server contains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from deltarank.adapters import IS_HEAD_TOO, is_module_path, leaf, module_path, module_type
from deltarank.checkpoints import Checkpoint, Pair, Pairing, SummedTensor
from deltarank.jobs.extract.experts import (
    are_experts_complete,
    fused_expert,
    is_slice,
    name_for_peft,
    refusal_of_expert,
    separate_from_experts,
)
from deltarank.jobs.extract.layout import AdapterLayout, Target, UnfactoredTensor, ZeroModule, as_summed
from deltarank.jobs.extract.module_names import ModuleNames
from deltarank.jobs.extract.reasons import (
    NOT_A_MATRIX,
    NOT_A_MODULE,
    TIED_TO_HEAD,
    UNKNOWN_ROUTER,
    bias_beside_parameters,
    head_refusal,
    incomplete_experts,
    omission_reason,
    unknown_module,
)
from deltarank.results import TIED_EMBEDDING, Outcome, Skipped
from deltarank.servers import Handling, Server
from deltarank.tensor_names import EXPERT, LM_HEAD, ROUTER, kind_of_tensor


@dataclass(frozen=True)
class LayoutBuilder:
    """Sorts the tensors of a pairing by what the server can load.

    names             what the modules of the base are called
    selected_by_name  the user named the tensors to extract (`--include`)
    """

    base: Checkpoint
    finetune: Checkpoint
    server: Server
    rank: int
    names: ModuleNames
    selected_by_name: bool = False

    def build(self, pairing: Pairing) -> AdapterLayout:
        whole = [pair for pair in pairing.pairs if self._is_carried_whole(pair)]
        placed = [self._place(pair) for pair in pairing.pairs if pair not in whole]
        unfactored = [
            *self._place_summed((*pairing.summed, *(as_summed(pair, "carried whole") for pair in whole))),
            *map(_place_skipped, pairing.skipped),
            *(each for each in placed if isinstance(each, UnfactoredTensor)),
        ]
        matrices = [each for each in placed if isinstance(each, Target)]
        targets, note = separate_from_experts(matrices, self.names, self.server)
        if not are_experts_complete(targets, self.base, self.server):
            reason = incomplete_experts(self.server)
            experts = [target.pair for target in targets if target.is_expert]
            unfactored += [UnfactoredTensor(pair.name, EXPERT, reason, pair) for pair in experts]
            targets = [target for target in targets if not target.is_expert]
        return AdapterLayout(
            self.server,
            self.rank,
            tuple(targets),
            tuple(self._with_biases(unfactored, targets)),
            tuple(self._zero_modules(targets)),
            (note,) if note else (),
        )

    def _is_carried_whole(self, pair: Pair) -> bool:
        """Of a router, or of a vocabulary that the user named: it is measured, and the server loads it whole."""
        kind = self.names.kind(pair.base.tensor)
        return kind is not None and self.server.carries.get(kind) == "whole" and not is_slice(pair)

    def _place(self, pair: Pair) -> Target | UnfactoredTensor:
        """One matrix that gets factors if the server loads them."""
        tensor = pair.base.tensor
        kind = self.names.kind(tensor)
        if (refusal := self._refusal(pair, kind)) is not None:
            return UnfactoredTensor(pair.name, *refusal, pair)
        fused = fused_expert(pair, self.base)
        name = self.names.parameter(name_for_peft(pair, self.base))
        module = name if fused else module_path(name)
        if module is None or not is_module_path(module):
            return UnfactoredTensor(pair.name, "parameter", NOT_A_MODULE, pair)
        if not fused and not self.server.knows_module(name := leaf(module)):
            return UnfactoredTensor(pair.name, "other modules", unknown_module(name, self.server), pair)
        # PEFT fuses single experts, and then knows one rank for all of them.
        may_be_smaller = self.server.is_peft and (fused is not None or kind != EXPERT)
        return Target(
            pair,
            module,
            rank=min(self.rank, *pair.shape) if may_be_smaller else self.rank,
            transposed=fused.layout.inputs_first if fused else self.names.is_transposed(tensor),
            as_parameter=fused is not None,
            fused_expert=fused,
        )

    def _refusal(self, pair: Pair, kind: str | None) -> tuple[str, str] | None:
        """The kind of a matrix that gets no factors, and the reason."""
        if (reason := self.names.refusal(pair.base.tensor)) is not None:
            return kind or "parameter", reason
        if kind == "lm_head" and (reason := head_refusal(self.base.config, self.server)) is not None:
            return kind, reason
        if kind == EXPERT or is_slice(pair):
            reason = refusal_of_expert(pair, self.base, self.server, selected_by_name=self.selected_by_name)
            return None if reason is None else (EXPERT, reason)
        if kind is None:
            is_matrix = len(self.base.tensors[pair.base.tensor].shape) == 2
            return None if is_matrix else ("other tensors", NOT_A_MATRIX)
        has_factors = self.server.carries.get(kind) in ("on request", "factors")
        return None if has_factors else (kind, omission_reason(kind, self.server))

    def _router(self, pair: SummedTensor) -> UnfactoredTensor:
        """Carried whole: it has a row for each expert, so factors would rarely be smaller."""
        module = self.names.router(pair.base.tensor)
        if module is None or not is_module_path(module):
            return UnfactoredTensor(pair.name, ROUTER, UNKNOWN_ROUTER, pair)
        return UnfactoredTensor(pair.name, ROUTER, "", pair, whole_module=module)

    def _place_summed(self, tensors: Iterable[SummedTensor]) -> Iterator[UnfactoredTensor]:
        finetune_has_head = any(kind_of_tensor(name) == "lm_head" for name in self.finetune.tensors)
        for tensor in tensors:
            name = tensor.base.tensor
            kind = self.names.kind(name) or ("tied" if tensor.outcome is Outcome.TIED else "other tensors")
            module = self.names.module(name)
            tied_head = None if finetune_has_head or kind != "embedding" else self.names.tied_head(name)
            can_be_whole = self.server.carries.get(kind) == "whole" and tensor.name in self.finetune.tensors
            if can_be_whole and (reason := self.names.refusal(name)) is not None:
                yield UnfactoredTensor(tensor.name, kind, reason, tensor)
            elif not can_be_whole or not is_module_path(module):
                refusal = head_refusal(self.base.config, self.server) if kind == LM_HEAD else None
                tied = f"{IS_HEAD_TOO}: " if tensor.reason == TIED_EMBEDDING else ""
                yield UnfactoredTensor(
                    tensor.name, kind, tied + (refusal or omission_reason(kind, self.server)), tensor
                )
            elif kind == ROUTER:
                yield self._router(tensor)
            elif tied_head and kind == "embedding" and module.endswith(".embed_tokens"):
                yield UnfactoredTensor(tensor.name, kind, "", tensor, whole_module=module, tied_head=tied_head)
            elif tensor.outcome is Outcome.TIED or (kind == "embedding" and not finetune_has_head):
                yield UnfactoredTensor(tensor.name, kind, TIED_TO_HEAD, tensor)
            else:
                yield UnfactoredTensor(tensor.name, kind, "", tensor, whole_module=module)

    def _with_biases(
        self, unfactored: Sequence[UnfactoredTensor], targets: Sequence[Target]
    ) -> Iterator[UnfactoredTensor]:
        """The bias of a module with factors is carried beside them, where the server loads that."""
        outputs = {target.module: target.linear_shape[0] for target in targets}
        has_parameters = any(target.as_parameter or target.is_expert for target in targets)
        for tensor in unfactored:
            module = self._module_of_bias(tensor) if self.server.bias is Handling.HONOURED else None
            if module is None or tensor.pair is None or tensor.pair.base.shape != (1, outputs.get(module)):
                yield tensor
            elif has_parameters:
                yield replace(tensor, reason=bias_beside_parameters(self.server))
            else:
                yield replace(tensor, reason="", bias_of=module)

    def _module_of_bias(self, tensor: UnfactoredTensor) -> str | None:
        if tensor.kind != "bias" or not isinstance(tensor.pair, SummedTensor):
            return None
        module, _, last = self.names.parameter(tensor.pair.base.tensor).rpartition(".")
        return module if last == "bias" else None

    def _zero_modules(self, targets: Sequence[Target]) -> Iterator[ZeroModule]:
        """Modules that are no targets themselves, because they were excluded, say, and that the server needs."""
        partners = {partner for target in targets for partner in self.server.partners(target.module)}
        types = {module_type(module) for module in (*partners, *(target.module for target in targets))}
        with_factors = {target.module for target in targets}
        for name, info in self.base.tensors.items():
            module = module_path(self.names.parameter(name)) if self.names.refusal(name) is None else None
            if module is None or len(info.shape) != 2 or module in with_factors:
                continue
            if module in partners or (self.server.needs_every_layer and module_type(module) in types):
                rows, columns = info.shape
                yield ZeroModule(module, (columns, rows) if self.names.is_transposed(name) else (rows, columns))


def _place_skipped(tensor: Skipped) -> UnfactoredTensor:
    is_one_sided = tensor.outcome in (Outcome.EXTRA_ROWS, Outcome.ONLY_IN_FINETUNE)
    is_vocabulary = is_one_sided and kind_of_tensor(tensor.name) in ("embedding", "lm_head")
    return UnfactoredTensor(tensor.name, "added tokens" if is_vocabulary else tensor.outcome.value, tensor.reason, None)
