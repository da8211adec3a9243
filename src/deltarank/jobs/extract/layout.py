"""What goes into an adapter and how, known from headers alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from deltarank.adapters import is_module_path, module_path, module_type
from deltarank.checkpoints import Checkpoint, Pair, Pairing, SummedTensor, TensorInfo
from deltarank.results import Outcome
from deltarank.servers import (
    ExpertLayout,
    Server,
    is_transposed,
    kind_in_words,
    kind_of_tensor,
    modules_fused_by_peft,
    router_in_peft,
)

_NO_HEAD = "the output head is tied to it: an adapter that brings one of them whole would untie them"
EXPERT, ROUTER = "expert", "router"
_ONE_SIDED = (Outcome.EXTRA_ROWS, Outcome.ONLY_IN_FINETUNE)


@dataclass(frozen=True)
class Slot:
    """The place of one expert among those that share a parameter."""

    index: int
    experts: int
    stack: ExpertLayout


@dataclass(frozen=True)
class Target:
    """A matrix that gets factors.

    module      the path of its module in the base, which is what the adapter is loaded on; of a bare parameter, its own
    rank        of its factors as they are written
    transposed  it is stored as inputs x outputs
    bare        PEFT is to put the factors on the parameter, and not on the module that holds it
    slot        set for one of several matrices in one tensor
    """

    pair: Pair
    module: str
    rank: int
    transposed: bool
    bare: bool = False
    slot: Slot | None = None

    @property
    def is_expert(self) -> bool:
        return kind_of_tensor(self.pair.base.tensor) == EXPERT

    @property
    def leaf(self) -> str:
        """The last word of its module, by which readers find it."""
        return self.module.removesuffix(".weight").rpartition(".")[2]

    @property
    def sides(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.pair.shape[::-1] if self.transposed else self.pair.shape


@dataclass(frozen=True)
class Empty:
    """A module that gets factors of zeros, for a server that wants every layer of a type."""

    module: str
    sides: tuple[int, int]


@dataclass(frozen=True)
class UnfactoredTensor:
    """A tensor that gets no factors. `pair` is what to sum its change from, where both sides have it.

    module   the module that `modules_to_save` may carry it with
    beside   the module beside whose factors its change may be carried, for a bias
    head     the output head that is tied to it, which is carried as its copy
    """

    name: str
    kind: str
    reason: str
    pair: Pair | SummedTensor | None
    module: str | None = None
    beside: str | None = None
    head: str | None = None

    @property
    def has_place(self) -> bool:
        """Whether the adapter carries it, if it changed."""
        return self.module is not None or self.beside is not None


@dataclass(frozen=True)
class Layout:
    """The plan of an adapter. Every tensor of either side is in `targets` or in `unfactored`."""

    server: Server
    rank: int
    targets: tuple[Target, ...]
    unfactored: tuple[UnfactoredTensor, ...]
    empties: tuple[Empty, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())

    @property
    def summed(self) -> tuple[Pair | SummedTensor, ...]:
        """What is read for its change alone."""
        return tuple(other.pair for other in self.unfactored if other.pair is not None)


def lay_out(
    base: Checkpoint, finetune: Checkpoint, pairing: Pairing, server: Server, rank: int, *, asked: bool = False
) -> Layout:
    """Sorts what was paired by what the server takes.

    Args:
        asked: what is measured was named by the user (`--include`).
    """
    targets: list[Target] = []
    unfactored = [*_leftovers(base, finetune, pairing, server), *_skipped(pairing)]
    for pair in pairing.pairs:
        found = _placed(pair, base, server, rank, asked)
        if isinstance(found, Target):
            targets.append(found)
        else:
            unfactored.append(found)
    targets, notes = _told_apart(targets, base, server)
    if not _experts_are_whole(base, targets, by_words=server.name == "peft"):
        unfactored += [_refused(target, server) for target in targets if target.is_expert]
        targets = [target for target in targets if not target.is_expert]
    unfactored = _with_factors(unfactored, targets, server)
    return Layout(server, rank, tuple(targets), tuple(unfactored), tuple(_empties(base, targets, server)), tuple(notes))


def _placed(pair: Pair, base: Checkpoint, server: Server, rank: int, asked: bool) -> Target | UnfactoredTensor:
    """Where a matrix goes; or why it gets no factors."""
    tensor = pair.base.tensor
    slot = _slot(pair, base)
    why = _why_not(pair, base, server, slot, asked)
    module = module_path(_own_name(pair, base)) if slot is None else tensor
    if why is not None and why[0] == ROUTER and server.carries.get(ROUTER) == "whole":
        return _router(pair.name, pair, base)
    if why is not None or module is None or not is_module_path(module):
        kind, reason = why or ("parameter", "no weight of a module by its name, so no adapter can be put on it")
        return UnfactoredTensor(pair.name, kind, reason, pair)
    # Single experts are fused by PEFT, which knows one rank for them.
    has_own = server.patterns == "honoured" and (slot is not None or kind_of_tensor(tensor) != EXPERT)
    own = min(rank, *pair.shape) if has_own else rank
    transposed = slot.stack.inputs_first if slot else is_transposed(tensor, base.config)
    return Target(pair, module, own, transposed, bare=slot is not None, slot=slot)


def _router(name: str, pair: Pair | SummedTensor, base: Checkpoint) -> UnfactoredTensor:
    """Carried whole: it has a row for each expert, which a LoRA would seldom make smaller."""
    module = router_in_peft(pair.base.tensor.rpartition(".")[0], base.config)
    if module is None or not is_module_path(module):
        return UnfactoredTensor(name, ROUTER, f"a router of a model of which {_UNKNOWN}", pair)
    return UnfactoredTensor(name, ROUTER, "", pair, module)


def _own_name(pair: Pair, base: Checkpoint) -> str:
    """Of an expert that the base stores fused and the finetune by itself, the finetune's: PEFT knows that one, too."""
    return pair.base.tensor if pair.base.tensor in base.tensors else pair.name


def _is_slice(pair: Pair) -> bool:
    return pair.name.startswith(f"{pair.finetune.tensor}[")


def _slot(pair: Pair, base: Checkpoint) -> Slot | None:
    stack = ExpertLayout.of(pair.base.tensor, base.config) if _is_slice(pair) else None
    if stack is None:
        return None
    return Slot(int(pair.name.rpartition("[")[2].rstrip("]")), base.tensors[pair.base.tensor].shape[0], stack)


def _why_not(pair: Pair, base: Checkpoint, server: Server, slot: Slot | None, asked: bool) -> tuple[str, str] | None:
    """(kind, reason) for a matrix that was paired and gets no factors."""
    kind, tensor = kind_of_tensor(pair.base.tensor), pair.base.tensor
    how = server.carries.get(kind or "")
    if kind is None and not _is_slice(pair) and len(base.tensors[tensor].shape) != 2:
        return "other tensors", "not a matrix: a LoRA has no place for it"
    if kind == EXPERT or _is_slice(pair):
        return _why_no_expert(pair, base, server, slot, asked)
    return None if kind is None or how in ("on request", "factors") else (kind, _reason(kind, server))


def _why_no_expert(
    pair: Pair, base: Checkpoint, server: Server, slot: Slot | None, asked: bool
) -> tuple[str, str] | None:
    how = server.carries.get(EXPERT)
    if how is None:
        return EXPERT, _reason(EXPERT, server)
    if how == "on request" and not asked:
        return EXPERT, _reason(EXPERT, server)
    if _is_slice(pair):
        known = slot is not None and slot.experts > 1
        return None if known else (EXPERT, f"one of several matrices in one tensor, stored in a way that {_UNKNOWN}")
    is_fused = _own_name(pair, base).rpartition(".")[0].rpartition(".")[2] in modules_fused_by_peft(base.config)
    return None if is_fused or how == "on request" else (EXPERT, f"a single expert of a model of which {_UNKNOWN}")


_UNKNOWN = "it is not known how PEFT reaches it"


def _reason(kind: str, server: Server) -> str:
    if server.carries.get(kind) == "on request":
        return f"{kind_in_words(kind)}, which {server.title} takes in some versions only: if included by name"
    if kind == "bias" and server.bias == "honoured":
        return f"a bias that lies beside no factors of a linear module, so {server.title} has no place for it"
    return f"{server.omission} {kind_in_words(kind)}"


def _told_apart(targets: list[Target], base: Checkpoint, server: Server) -> tuple[list[Target], list[str]]:
    """PEFT takes modules by their last word for experts. Others that bear it are reached as bare parameters by PEFT;
    who writes for a server, too, is told."""
    names = modules_fused_by_peft(base.config)
    alike = [target for target in targets if target.leaf in names and not target.is_expert]
    if not alike or not any(kind_of_tensor(name) == EXPERT for name in base.tensors):
        return targets, []
    if server.name != "peft":
        leaves = sorted({f"{target.pair.module}" for target in alike})
        note = (
            f"PEFT (0.21) takes {_some(leaves)} of this model for experts when it loads the adapter, and puts nothing "
            f"on {'it' if len(leaves) == 1 else 'them'}: to load it with PEFT, make one with --server peft"
        )
        return targets, [note]
    bare = {target.pair.name for target in alike}
    return [
        replace(target, module=target.pair.base.tensor, bare=True) if target.pair.name in bare else target
        for target in targets
    ], []


def _some(names: Collection[str]) -> str:
    first = list(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _with_factors(
    unfactored: Sequence[UnfactoredTensor], targets: Sequence[Target], server: Server
) -> list[UnfactoredTensor]:
    """A bias whose module has factors goes with them, where the server takes that."""
    if server.bias != "honoured":
        return list(unfactored)
    outputs = {target.module: target.sides[0] for target in targets}
    is_bare = any(target.bare or target.is_expert for target in targets)
    reason = f"{server.title} takes no biases beside factors on bare parameters (experts)" if is_bare else ""
    return [
        replace(other, reason=reason, beside=None if is_bare else module)
        if (module := _module_of_bias(other)) is not None and _shape(other) == (1, outputs.get(module))
        else other
        for other in unfactored
    ]


def _module_of_bias(other: UnfactoredTensor) -> str | None:
    if other.kind != "bias" or not isinstance(other.pair, SummedTensor):
        return None
    module, _, leaf = other.pair.base.tensor.rpartition(".")
    return module if leaf == "bias" else None


def _shape(other: UnfactoredTensor) -> tuple[int, int] | None:
    return other.pair.base.shape if other.pair is not None else None


def _experts_are_whole(base: Checkpoint, targets: Iterable[Target], *, by_words: bool) -> bool:
    """All experts of all layers or none: readers fuse them into one tensor a layer. And where they are found by
    their last word, no other module may go by it."""
    experts = [target for target in targets if target.is_expert]
    leaves = {target.leaf for target in experts if not target.bare}
    stored = sum(
        info.entries for name, info in base.tensors.items() if kind_of_tensor(name) == EXPERT and len(info.shape) > 1
    )
    unfactored = {target.leaf for target in targets if not target.is_expert and not target.bare}
    return stored == sum(target.pair.entries for target in experts) and not (by_words and leaves & unfactored)


def _refused(target: Target, server: Server) -> UnfactoredTensor:
    reason = f"{server.title} takes all experts as they are or none, and some were left out or share their names"
    return UnfactoredTensor(target.pair.name, EXPERT, reason, target.pair)


def _leftovers(base: Checkpoint, finetune: Checkpoint, pairing: Pairing, server: Server) -> Iterator[UnfactoredTensor]:
    has_head = any(kind_of_tensor(name) == "lm_head" for name in finetune.tensors)
    head = None if has_head else _tied_head(base)
    for each in pairing.summed:
        kind = kind_of_tensor(each.name) or ("tied" if each.outcome is Outcome.TIED else "other tensors")
        module = each.base.tensor.rpartition(".")[0]
        whole = server.carries.get(kind) == "whole" and is_module_path(module) and each.name in finetune.tensors
        if whole and kind == ROUTER:
            yield _router(each.name, each, base)
        elif whole and head and kind == "embedding" and module.endswith(".embed_tokens"):
            yield UnfactoredTensor(each.name, kind, "", each, module, head=head)
        elif whole and (each.outcome is Outcome.TIED or (kind == "embedding" and not has_head)):
            yield UnfactoredTensor(each.name, kind, _NO_HEAD, each)
        elif whole:
            yield UnfactoredTensor(each.name, kind, "", each, module)
        else:
            yield UnfactoredTensor(each.name, kind, _reason(kind, server), each)


def _tied_head(base: Checkpoint) -> str | None:
    """The output head that the base takes from its input embedding; None where PEFT would not find it."""
    classes = base.config.get("architectures")
    is_known = isinstance(classes, list) and any(str(name).endswith("ForCausalLM") for name in classes)
    has_own = any(kind_of_tensor(name) == "lm_head" for name in base.tensors)
    return "lm_head" if is_known and not has_own and base.config.get("tie_word_embeddings") is not False else None


def _skipped(pairing: Pairing) -> Iterator[UnfactoredTensor]:
    for each in pairing.skipped:
        is_vocabulary = each.outcome in _ONE_SIDED and kind_of_tensor(each.name) in ("embedding", "lm_head")
        kind = "added tokens" if is_vocabulary else each.outcome.value
        yield UnfactoredTensor(each.name, kind, each.reason, None)


def _empties(base: Checkpoint, targets: list[Target], server: Server) -> Iterator[Empty]:
    """Layers of a type that is targeted which are not targets themselves (excluded, say)."""
    if not server.needs_every_layer:
        return
    types = {module_type(target.module) for target in targets}
    taken = {target.module for target in targets}
    for name, info in base.tensors.items():
        module = module_path(name)
        if module is not None and len(info.shape) == 2 and module not in taken and module_type(module) in types:
            yield Empty(module, _sides(name, info, base))


def _sides(name: str, info: TensorInfo, base: Checkpoint) -> tuple[int, int]:
    rows, columns = info.shape
    return (columns, rows) if is_transposed(name, base.config) else (rows, columns)
