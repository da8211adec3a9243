"""The cheapest way to serve a fleet: slots of one rank beside the base, and own weights for the finetunes left.

One server holds the base and `slots` LoRA slots, all of one rank R. Of the finetunes that are within the limit at R it
serves a set S, with min(slots, |S|) slots; each other finetune is served with its own weights. The plan minimises

    bytes(base) + min(slots, |S|) x bytes(slot of rank R) + sum of bytes(own weights of the others)

over R and S; without S there is no base. With tensor parallelism, all bytes are those of one GPU. Where all of
`slots` are used, S is all that R admits. With fewer slots, S is those with the largest weights, so that the minimum
over all sets is found by trying each number of slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from deltarank.errors import UsageError
from deltarank.jobs.fleet.plan_sentences import plan_sentences
from deltarank.results import (
    SERVABLE_RANKS,
    FinetuneNeed,
    Fleet,
    FleetFinetune,
    PlanMeasure,
    RankCost,
    RankPlan,
    VerdictKind,
)
from deltarank.servers import slot_bytes


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan is asked for.

    max_error   the largest relative error ||D - D_r|| / ||D|| that is accepted; or else
    max_kld     the largest KL divergence from the finetune, in nats per token
    slots       how many adapters are served at once; None: all of them
    gpu_memory  bytes of a GPU for the base and the slots, and for each model of its own; None: any
    tensor_parallel  over how many GPUs each model is divided

    Raises:
        UsageError: (slug "bad-plan") a value is not usable, or there is not exactly one limit.
    """

    max_error: float | None = None
    max_kld: float | None = None
    slots: int | None = None
    gpu_memory: int | None = None
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if (self.max_error is None) == (self.max_kld is None):
            raise _bad("A plan needs one limit: either --max-error or --max-kld.")
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise _bad(f"--max-error {self.max_error} is not a relative error from 0 to less than 1.")
        if self.max_kld is not None and not 0 <= self.max_kld < float("inf"):
            raise _bad(f"--max-kld {self.max_kld} is not a number of nats of at least 0.")
        if self.slots is not None and self.slots < 1:
            raise _bad(f"--slots {self.slots} is not a number of at least 1.")
        if self.gpu_memory is not None and self.gpu_memory < 1:
            raise _bad(f"--gpu-memory {self.gpu_memory} is not a size of at least 1 byte.")
        if self.tensor_parallel < 1:
            raise _bad(f"--tensor-parallel {self.tensor_parallel} is not a number of at least 1.")

    def check(self, ranks: Sequence[int], config: Mapping[str, Any]) -> None:
        """Whether vLLM can serve what is planned.

        Args:
            ranks: those that are measured.
            config: of the base.

        Raises:
            UsageError: (slug "bad-plan") vLLM has slots of none of these ranks, or cannot divide the heads.
        """
        _servable(ranks)
        heads = config.get("num_attention_heads")
        if isinstance(heads, int) and heads % self.tensor_parallel:
            raise _bad(
                f"vLLM cannot divide {heads} attention heads over {self.tensor_parallel} GPUs: --tensor-parallel must "
                "be a divisor."
            )

    @property
    def measure(self) -> PlanMeasure:
        return PlanMeasure.RELATIVE_ERROR if self.max_kld is None else PlanMeasure.KLD

    @property
    def limit(self) -> float:
        found = self.max_error if self.max_kld is None else self.max_kld
        assert found is not None
        return found


def _servable(ranks: Sequence[int]) -> list[int]:
    """Those that vLLM has slots for."""
    found = [rank for rank in ranks if rank in SERVABLE_RANKS]
    if not found:
        raise _bad(f"No rank of vLLM's slots is measured; these are {', '.join(map(str, SERVABLE_RANKS))}.")
    return found


def _bad(message: str) -> UsageError:
    return UsageError(message, cure="For example: --max-error 0.5 --slots 8 --gpu-memory 24GB.", slug="bad-plan")


def plan_ranks(fleet: Fleet, options: PlanOptions, *, base_bytes: int, slot_numbers: int) -> RankPlan:
    """The plan for the finetunes of a fleet that were measured.

    Args:
        base_bytes: of the base's tensors.
        slot_numbers: the numbers of a slot of rank 1 of this base on each GPU, `servers.slot_numbers`.

    Raises:
        UsageError: (slug "bad-plan") no rank that vLLM has slots for was measured, or no finetune has the measure.
    """
    ranks = _servable(fleet.ranks)
    gpus = options.tensor_parallel
    base_bytes = -(-base_bytes // gpus)
    needs, unplanned = _needs(fleet, options, base_bytes)
    if not needs:
        raise _nothing_to_plan(options.measure)
    slots = options.slots or len(needs)
    server = _Server(base_bytes, slot_numbers, slots, options.gpu_memory)
    ways = {rank: server.cheapest(rank, needs) for rank in ranks}
    costs = tuple(_cost(rank, ways[rank], needs, server) for rank in ranks)
    best = min((cost for cost in costs if cost.fits), key=lambda cost: (cost.total_bytes, cost.rank), default=None)
    chosen = best.rank if best and best.as_loras else None
    served = ways[chosen] if chosen else frozenset()
    plan = RankPlan(
        measure=options.measure,
        limit=options.limit,
        slots=slots,
        gpu_memory=options.gpu_memory,
        base_bytes=base_bytes,
        slot_numbers=slot_numbers,
        costs=costs,
        chosen=chosen,
        finetunes=tuple(replace(need, served_as=chosen) if need.name in served else need for need in needs),
        unplanned=unplanned,
        sentences=(),
        tensor_parallel=gpus,
    )
    foreign = tuple(f.name for f in fleet.measured if not f.is_of_base)
    partial = tuple(f.name for f in fleet.measured if f.is_of_base and f.reason)
    return replace(plan, sentences=plan_sentences(plan, fits=best is not None, foreign=foreign, partial=partial))


def _nothing_to_plan(measure: PlanMeasure) -> UsageError:
    if measure is PlanMeasure.RELATIVE_ERROR:
        return _bad("There is nothing to plan: no finetune was measured.")
    return UsageError(
        "There is nothing to plan: no finetune has outputs on its run.",
        cure="Run `deltarank outputs BASE FINETUNE -o FLEET/NAME` for each finetune, and repeat this command; or plan "
        "with --max-error.",
        slug="bad-plan",
    )


def _needs(fleet: Fleet, options: PlanOptions, base_bytes: int) -> tuple[list[FinetuneNeed], tuple[str, ...]]:
    """What each finetune needs; and the names of those of which that is not known. `base_bytes` of one GPU.

    A LoRA of full rank on the matrices makes no finetune of another base, whose other tensors differ, too.
    """
    needs, unplanned = [], []
    for finetune in fleet.finetunes:
        losses = dict(_losses(finetune, options.measure))
        if not losses:
            unplanned.append(finetune.name)
            continue
        ranks = SERVABLE_RANKS if finetune.is_of_base else ()
        rank = next((rank for rank in ranks if losses.get(rank, float("inf")) <= options.limit), None)
        is_whole = finetune.weight_bytes and finetune.verdict is not VerdictKind.ADAPTER
        needs.append(
            FinetuneNeed(
                finetune.name, rank, -(-finetune.weight_bytes // options.tensor_parallel) if is_whole else base_bytes
            )
        )
    return needs, tuple(unplanned)


def _losses(finetune: FleetFinetune, measure: PlanMeasure) -> Iterator[tuple[int, float]]:
    if not finetune.is_measured:
        return
    if measure is PlanMeasure.KLD:
        yield from ((found.rank, found.mean) for found in finetune.kld)
    else:
        yield from ((loss.rank, loss.relative_error) for loss in finetune.losses)


@dataclass(frozen=True)
class _Server:
    """One GPU with the base and its slots."""

    base_bytes: int
    slot_numbers: int
    slots: int
    memory: int | None

    def cheapest(self, rank: int, needs: Sequence[FinetuneNeed]) -> frozenset[str]:
        """The names of those that are served as LoRAs of this rank, in the cheapest way that fits."""
        within = sorted((n for n in needs if n.rank and n.rank <= rank), key=lambda n: -n.weight_bytes)
        saved = list(accumulate((need.weight_bytes for need in within), initial=0))
        too_large = sum(not self.holds(need.weight_bytes) for need in within)  # as models of their own
        counts = {*range(too_large, min(self.slots, len(within))), len(within)}
        possible = [count for count in counts if self.holds(self.server_bytes(rank, count))]
        best = min(possible, key=lambda count: (self.server_bytes(rank, count) - saved[count], -count), default=0)
        return frozenset(need.name for need in within[:best])

    def holds(self, number: int) -> bool:
        return self.memory is None or number <= self.memory

    def server_bytes(self, rank: int, finetunes: int) -> int:
        if not finetunes:
            return 0
        return self.base_bytes + slot_bytes(self.slot_numbers, rank, min(self.slots, finetunes))


def _cost(rank: int, served: frozenset[str], needs: Sequence[FinetuneNeed], server: _Server) -> RankCost:
    one = slot_bytes(server.slot_numbers, rank, 1)
    others = [need.weight_bytes for need in needs if need.name not in served]
    taken = server.server_bytes(rank, len(served))
    free = None if server.memory is None else max(server.memory - server.base_bytes, 0)
    return RankCost(
        rank=rank,
        within=sum(need.rank is not None and need.rank <= rank for need in needs),
        need_higher=sum(need.rank is not None and need.rank > rank for need in needs),
        need_own=sum(need.rank is None for need in needs),
        slot_bytes=one,
        slots=min(server.slots, len(served)),
        as_loras=len(served),
        server_bytes=taken,
        own_bytes=sum(others),
        most_slots=None if free is None or not one else free // one,
        fits=all(server.holds(number) for number in (taken, *others)),
    )
