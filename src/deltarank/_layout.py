"""What goes into an adapter and how, known from headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from deltarank.adapters import Server, is_module, is_transposed, kind_of, module_of, type_of, words_for
from deltarank.checkpoints import Checkpoint, Leftover, Pair, Pairing, TensorInfo
from deltarank.results import Outcome

_NO_HEAD = "the output head is tied to it: an adapter that brings one of them whole would untie them"
EXPERT = "expert"
_ONE_SIDED = (Outcome.EXTRA_ROWS, Outcome.ONLY_IN_FINETUNE)


@dataclass(frozen=True)
class Target:
    """A matrix that gets factors.

    module      the path of its module in the base, which is what the adapter is loaded on
    rank        of its factors as they are written
    transposed  it is stored as inputs x outputs
    """

    pair: Pair
    module: str
    rank: int
    transposed: bool

    @property
    def is_expert(self) -> bool:
        return kind_of(self.pair.base.tensor) == EXPERT

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
class Other:
    """A tensor that gets no factors. `pair` is what to sum its change from, where both sides have it.

    module   the module that `modules_to_save` may carry it with; None: it stays out
    """

    name: str
    kind: str
    reason: str
    pair: Pair | Leftover | None
    module: str | None = None


@dataclass(frozen=True)
class Layout:
    """The plan of an adapter. Every tensor of either side is in `targets` or in `others`."""

    server: Server
    rank: int
    targets: tuple[Target, ...]
    others: tuple[Other, ...]
    empties: tuple[Empty, ...] = field(default=())

    @property
    def summed(self) -> tuple[Pair | Leftover, ...]:
        """What is read for its change alone."""
        return tuple(other.pair for other in self.others if other.pair is not None)


def lay_out(base: Checkpoint, finetune: Checkpoint, pairing: Pairing, server: Server, rank: int) -> Layout:
    """Sorts what was paired by what the server takes."""
    targets: list[Target] = []
    others = [*_leftovers(finetune, pairing, server), *_skipped(pairing)]
    for pair in pairing.pairs:
        why = _why_not(pair, len(base.tensors[pair.base.tensor].shape), server)
        module = module_of(pair.base.tensor)
        if why is not None or module is None:
            kind, reason = why or ("parameter", "no weight of a module by its name, so no adapter can be put on it")
            others.append(Other(pair.name, kind, reason, pair))
            continue
        has_own = server.patterns == "honoured" and kind_of(pair.base.tensor) != EXPERT
        own = min(rank, *pair.shape) if has_own else rank
        targets.append(Target(pair, module, own, is_transposed(pair.base.tensor, base.config)))
    if not _experts_are_whole(base, targets):
        others += [_refused(target, server) for target in targets if target.is_expert]
        targets = [target for target in targets if not target.is_expert]
    return Layout(server, rank, tuple(targets), tuple(others), tuple(_empties(base, targets, server)))


def _experts_are_whole(base: Checkpoint, targets: list[Target]) -> bool:
    """All experts of all layers or none: readers fuse them into one tensor a layer. And no other module may go by
    an expert's last word, by which they are found."""
    experts = {target.module for target in targets if target.is_expert}
    leaves = {module.rpartition(".")[2] for module in experts}
    all_experts = {name for name, info in base.tensors.items() if kind_of(name) == EXPERT and len(info.shape) > 1}
    others = {target.module.rpartition(".")[2] for target in targets if not target.is_expert}
    return {module_of(name) for name in all_experts} == experts and not leaves & others


def _refused(target: Target, server: Server) -> Other:
    reason = f"{server.title} takes all experts as they are or none, and some were left out or share their names"
    return Other(target.pair.name, EXPERT, reason, target.pair)


def _why_not(pair: Pair, sides: int, server: Server) -> tuple[str, str] | None:
    """(kind, reason) for a matrix that was paired and gets no factors."""
    kind = kind_of(pair.base.tensor)
    if pair.name.startswith(f"{pair.finetune.tensor}["):
        return EXPERT, f"one of several matrices in one tensor: {server.leaves_out} such experts"
    if kind is None and sides != 2:
        return "other tensors", "not a matrix: a LoRA has no place for it"
    if kind is None or server.carries.get(kind) in ("asked", "factors"):
        return None
    return kind, _reason(kind, server)


def _reason(kind: str, server: Server) -> str:
    return f"{server.leaves_out} {words_for(kind)}"


def _leftovers(finetune: Checkpoint, pairing: Pairing, server: Server) -> Iterator[Other]:
    has_head = any(kind_of(name) == "lm_head" for name in finetune.tensors)
    for each in pairing.leftovers:
        kind = kind_of(each.name) or ("tied" if each.outcome is Outcome.TIED else "other tensors")
        module = each.base.tensor.rpartition(".")[0]
        whole = server.carries.get(kind) == "whole" and is_module(module) and each.name in finetune.tensors
        if whole and (each.outcome is Outcome.TIED or (kind == "embedding" and not has_head)):
            yield Other(each.name, kind, _NO_HEAD, each)
        elif whole:
            yield Other(each.name, kind, "", each, module)
        else:
            yield Other(each.name, kind, _reason(kind, server), each)


def _skipped(pairing: Pairing) -> Iterator[Other]:
    for each in pairing.skipped:
        kind = "added tokens" if each.outcome in _ONE_SIDED and kind_of(each.name) else each.outcome.value
        yield Other(each.name, kind, each.reason, None)


def _empties(base: Checkpoint, targets: list[Target], server: Server) -> Iterator[Empty]:
    """Layers of a type that is targeted which are not targets themselves (excluded, say)."""
    if not server.wants_whole_types:
        return
    types = {type_of(target.module) for target in targets}
    taken = {target.module for target in targets}
    for name, info in base.tensors.items():
        module = module_of(name)
        if module is not None and len(info.shape) == 2 and module not in taken and type_of(module) in types:
            yield Empty(module, _sides(name, info, base))


def _sides(name: str, info: TensorInfo, base: Checkpoint) -> tuple[int, int]:
    rows, columns = info.shape
    return (columns, rows) if is_transposed(name, base.config) else (rows, columns)
