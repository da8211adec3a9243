"""A rank plan in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltarank.results import PlanMeasure, RankCost, RankPlan, count, escape, figure, listing, percent, shorten, size

MOST_NAMED = 5

VLLM_UTILISATION = 0.92
"""The share of the memory of a GPU that vLLM uses by default."""

NOT_COUNTED = (
    "Counted are the weights as they are stored and vLLM's LoRA slots (tensor parallel size {gpus}, 2 bytes a "
    "number). Not counted are the KV cache, activations, CUDA graphs, and adapters that wait in the host's memory."
)


def plan_sentences(
    plan: RankPlan, *, fits: bool, foreign: Sequence[str] = (), partial: Sequence[str] = ()
) -> tuple[str, ...]:
    """The answer first; then the limit, what is counted, and who is left out.

    Args:
        fits: whether any plan fits the memory.
        foreign: the finetunes of another base.
        partial: those with parts that were not measured, of which their notes tell.
    """
    planned = {need.name for need in plan.finetunes}
    left_out = _not_counted([n for n in foreign if n in planned], [n for n in partial if n in planned])
    return (
        _answer(plan, fits) + _without(plan),
        *_details(plan, foreign),
        *left_out,
        NOT_COUNTED.format(gpus=plan.tensor_parallel),
    )


def _without(plan: RankPlan) -> str:
    """The finetunes that the answer does not cover; "" if it covers all."""
    if not plan.unplanned:
        return ""
    return f" {count(len(plan.unplanned), 'finetune is', 'finetunes are')} not in this plan."


def _answer(plan: RankPlan, fits: bool) -> str:
    number, cost = len(plan.finetunes), plan.cheapest
    if not fits:
        return _nothing_fits(plan)
    if cost is None:
        total = size(sum(need.weight_bytes for need in plan.finetunes))
        return f"The cheapest plan has no LoRAs: {_all(number)} with {_its(number)} own weights, {total} in all."
    served = f"{cost.as_loras:,} of {count(number, 'finetune')}" if cost.as_loras < number else _all(number)
    slots = f"{count(cost.slots, 'slot')} of rank {cost.rank}"
    own = number - cost.as_loras
    rest = f" and {'the other' if own == 1 else f'{own:,}'} with {_its(own)} own weights" if own else ""
    return f"Serve {served} as LoRAs in {slots}{rest}: {size(cost.total_bytes)} in all."


def _all(number: int) -> str:
    return {1: "the only finetune", 2: "both finetunes"}.get(number, f"all {number:,} finetunes")


def _its(number: int) -> str:
    return "their" if number > 1 else "its"


def _nothing_fits(plan: RankPlan) -> str:
    smallest = plan.costs[0]
    return (
        f"No plan fits {size(plan.gpu_memory or 0)}: the base takes {size(plan.base_bytes)}, a slot of rank "
        f"{smallest.rank} {size(smallest.slot_bytes)}, and the largest finetune with its own weights "
        f"{size(max(need.weight_bytes for need in plan.finetunes))}."
    )


def _not_counted(foreign: Sequence[str], partial: Sequence[str]) -> Iterator[str]:
    if foreign:
        yield f"Not finetunes of this base, so that no LoRA on it serves them: {_listed(foreign)}."
    if partial:
        yield f"Planned by a part of their weights, as their notes say: {_listed(partial)}."


def _details(plan: RankPlan, foreign: Sequence[str]) -> Iterator[str]:
    if plan.tensor_parallel > 1:
        yield (
            f"Each model is divided over {plan.tensor_parallel:,} GPUs; all sizes are those of one of them. The "
            "weights are counted as if they were divided evenly."
        )
    yield f"The limit is {plan.measure.in_words(figure(plan.limit))}{_of_what(plan.measure)}."
    cost = plan.cheapest
    if cost:
        own = f", own weights {size(cost.own_bytes)}" if cost.own_bytes else ""
        yield f"The base takes {size(plan.base_bytes)}, {_slots_take(cost)}{own}."
    if cost and plan.gpu_memory is not None:
        yield _what_is_left(plan.gpu_memory, cost.server_bytes)
    yield from _dear_ranks(plan)
    if over := [need.name for need in plan.finetunes if need.rank is None and need.name not in foreign]:
        yield f"No rank that was measured keeps {_listed(over)} within the limit."
    if cost and (dear := [n.name for n in plan.finetunes if n.rank is not None and n.served_as is None]):
        yield (
            f"{_listed(dear)} would be within the limit as {'a LoRA' if len(dear) == 1 else 'LoRAs'}, but the slots "
            "for that take more memory than own weights, or do not fit."
        )
    if plan.unplanned:
        lacking = "no outputs were measured" if plan.measure is PlanMeasure.KLD else "no weights were measured"
        yield f"Not in the plan, because {lacking}: {_listed(plan.unplanned)}."


def _slots_take(cost: RankCost) -> str:
    if cost.slots == 1:
        return f"the slot {size(cost.slot_bytes)}"
    return f"{cost.slots:,} slots of {size(cost.slot_bytes)} each take {size(cost.slots * cost.slot_bytes)}"


def _dear_ranks(plan: RankPlan) -> Iterator[str]:
    """The ranks within the limit at which own weights cost less."""
    if ranks := [str(each.rank) for each in plan.costs if each.within and not each.as_loras]:
        memory = " or do not fit" if plan.gpu_memory is not None else ""
        yield (
            f"At {'rank' if len(ranks) == 1 else 'ranks'} {listing(ranks, most=MOST_NAMED)}, no finetune is served as "
            f"a LoRA: the base and its slots take more memory than own weights{memory}."
        )


def _what_is_left(memory: int, taken: int) -> str:
    left = int(VLLM_UTILISATION * memory) - taken
    return (
        f"The base and its slots take {size(taken)} of {size(memory)}. Of these, vLLM uses {percent(VLLM_UTILISATION)} "
        f"by default (--gpu-memory-utilization), which leaves {size(left) if left > 0 else 'nothing'} for the KV cache "
        "and activations."
    )


def _of_what(measure: PlanMeasure) -> str:
    if measure is PlanMeasure.KLD:
        return " from the finetune, as outputs measured it"
    return ", ||D - D_r|| / ||D|| over the matrices that were measured"


def _listed(names: Sequence[str]) -> str:
    return listing([shorten(escape(name)) for name in names], most=MOST_NAMED)
