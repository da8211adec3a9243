"""The rank plan of a fleet: the cheapest of all assignments, and what must hold of every plan."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from deltarank.errors import UsageError
from deltarank.jobs.fleet import PlanOptions, plan_ranks
from deltarank.results import Fleet, FleetFinetune, FleetOutcome, Loss, RankDivergence, RankPlan, Reference, VerdictKind

RANKS = (8, 16, 64)
BASE = 1000


def finetune(name: str, errors: Sequence[float], weight_bytes: int = BASE, **more: Any) -> FleetFinetune:
    losses = tuple(Loss(rank, 0, 0, error, 1 - error**2) for rank, error in zip(RANKS, errors, strict=True))
    row = FleetFinetune(name, name, FleetOutcome.MEASURED, losses=losses, weight_bytes=weight_bytes)
    return replace(row, **{"verdict": VerdictKind.FULL, **more})


def fleet(*finetunes: FleetFinetune, ranks: Sequence[int] = RANKS) -> Fleet:
    return Fleet(Reference("base"), {"ranks": list(ranks)}, finetunes, "1", "now")


def plan(of: Fleet, *, numbers: int = 1, base: int = BASE, **options: Any) -> RankPlan:
    return plan_ranks(of, PlanOptions(**options), base_bytes=base, slot_numbers=numbers)


def total(found: RankPlan) -> int:
    """The bytes of what the plan says, added up from how it serves each finetune."""
    served = [need for need in found.finetunes if need.served_as]
    own = sum(need.weight_bytes for need in found.finetunes if not need.served_as)
    slots = min(found.slots, len(served)) * found.slot_numbers * (found.chosen or 0) * 2
    return own + (found.base_bytes + slots if served else 0)


def cheapest(found: RankPlan) -> int | None:
    """The least bytes over all ranks and all sets of finetunes that are served as LoRAs; None if nothing fits."""
    memory, totals = found.gpu_memory or float("inf"), []
    for rank, size in itertools.product(RANKS, range(len(found.finetunes) + 1)):
        within = [need for need in found.finetunes if need.rank and need.rank <= rank]
        for served in itertools.combinations(within, min(size, len(within))):
            own = [need.weight_bytes for need in found.finetunes if need not in served]
            slots = min(found.slots, len(served)) * found.slot_numbers * rank * 2
            server = found.base_bytes + slots if served else 0
            if max([server, *own]) <= memory:
                totals.append(server + sum(own))
    return min(totals, default=None)


@pytest.mark.parametrize("seed", range(60))
def test_a_plan_is_the_cheapest_of_all_assignments(seed: int) -> None:
    drawn = random.Random(seed)
    members = []
    for i in range(drawn.randint(1, 6)):
        errors = sorted((drawn.random() for _ in RANKS), reverse=True)
        members.append(finetune(str(i), errors, drawn.choice([200, 900, 1000, 1500])))
    options: dict[str, Any] = {"max_error": drawn.choice([0.3, 0.6, 0.9]), "slots": drawn.randint(1, 5)}
    if drawn.random() < 0.6:
        options["gpu_memory"] = drawn.choice([950, 1100, 1400, 2000, 4000])
    found = plan(fleet(*members), numbers=drawn.choice([1, 3, 10]), **options)

    least = cheapest(found)
    if least is None:
        assert found.chosen is None
        assert not any(cost.fits for cost in found.costs)
        assert found.sentences[0].startswith("No plan fits")
    else:
        assert total(found) == least
        if found.cheapest:
            assert found.cheapest.total_bytes == least


def test_costs_grow_with_rank_and_slots_and_more_finetunes_fit_higher_ranks() -> None:
    members = [finetune(str(i), (0.9 - i / 20, 0.7 - i / 20, 0.4 - i / 50)) for i in range(12)]
    found = [plan(fleet(*members), max_error=0.5, slots=slots, gpu_memory=10_000) for slots in (1, 2, 8, 40)]

    for each in found:
        assert [cost.slot_bytes for cost in each.costs] == [rank * 2 for rank in RANKS]
        assert sorted(cost.within for cost in each.costs) == [cost.within for cost in each.costs]
        most = [cost.most_slots or 0 for cost in each.costs]
        assert sorted(most, reverse=True) == most
        assert all(cost.within + cost.need_higher + cost.need_own == 12 for cost in each.costs)
    servers = [each.cheapest.server_bytes if each.cheapest else 0 for each in found]
    assert sorted(servers) == servers
    assert [each.cheapest.slots if each.cheapest else 0 for each in found] == [1, 2, 8, 12]


def test_each_gpu_has_its_part_of_the_weights() -> None:
    of = fleet(finetune("a", (0.5, 0.3, 0.1), 900), finetune("b", (0.9, 0.9, 0.9), 901))
    whole, half = (plan(of, max_error=0.5, gpu_memory=1500, tensor_parallel=gpus) for gpus in (1, 2))

    assert (whole.base_bytes, half.base_bytes) == (BASE, BASE // 2)
    assert [need.weight_bytes for need in half.finetunes] == [450, 451]
    assert "Each model is divided over 2 GPUs" in " ".join(half.sentences)
    assert "tensor parallel size 2" in half.sentences[-1]
    assert "GPUs" not in " ".join(whole.sentences[:-1])


def test_limits_are_inclusive() -> None:
    members = fleet(*(finetune(name, (0.8, 0.5, 0.25)) for name in "ab"))
    assert plan(members, max_error=0.5, slots=1).chosen == 16
    assert plan(members, max_error=0.49999, slots=1).chosen == 64
    assert plan(members, max_error=0.5, slots=1, gpu_memory=BASE + 32).chosen == 16
    too_small = plan(members, max_error=0.5, slots=1, gpu_memory=BASE + 31)
    assert (too_small.chosen, too_small.cheapest) == (None, None)
    assert too_small.sentences[0].startswith("The cheapest plan has no LoRAs")


def test_a_limit_on_outputs_needs_outputs() -> None:
    kld = tuple(RankDivergence(rank, mean, None, None) for rank, mean in ((8, 0.4), (64, 0.02)))
    known = [finetune(name, (0.9, 0.9, 0.9), kld=kld) for name in "ab"]
    found = plan(fleet(*known, finetune("without", (0, 0, 0))), max_kld=0.02, slots=1)

    assert (found.chosen, found.unplanned) == (64, ("without",))
    assert "without" in found.sentences[-2]
    with pytest.raises(UsageError, match="no finetune has outputs"):
        plan(fleet(finetune("without", (0, 0, 0))), max_kld=0.02)


def test_an_adapter_with_weights_of_its_own_is_as_large_as_the_base() -> None:
    adapter = finetune("a", (0.9, 0.9, 0.9), weight_bytes=3, verdict=VerdictKind.ADAPTER)
    assert plan(fleet(adapter), max_error=0.1).finetunes[0].weight_bytes == BASE


def test_a_finetune_of_another_base_is_served_with_its_own_weights() -> None:
    foreign = finetune("foreign", (0, 0, 0), verdict=VerdictKind.UNRELATED, reason="another base")
    found = plan(fleet(*(finetune(n, (0, 0, 0)) for n in "ab"), foreign), max_error=0.5)

    assert [need.served_as for need in found.finetunes] == [8, 8, None]
    assert "Not finetunes of this base, so that no LoRA on it serves them: foreign." in found.sentences
    assert "No rank" not in " ".join(found.sentences)


def test_one_slot_and_two_finetunes_are_said_as_such() -> None:
    words = " ".join(plan(fleet(*(finetune(n, (0, 0, 0)) for n in "ab")), max_error=0.5, slots=1).sentences)
    assert words.startswith("Serve both finetunes as LoRAs in 1 slot of rank 8: ")
    assert "The base takes 1 kB, the slot 16 B." in words


def test_a_plan_names_those_with_parts_that_were_not_measured() -> None:
    partial = finetune("nan", (0, 0, 0), reason="1 matrix could not be measured")
    found = plan(fleet(finetune("a", (0, 0, 0)), partial), max_error=0.5)
    assert "Planned by a part of their weights, as their notes say: nan." in found.sentences


def test_one_that_failed_is_not_planned() -> None:
    found = plan(fleet(*(finetune(n, (0, 0, 0)) for n in "ab"), FleetFinetune.failed("c", "c", "NaN")), max_error=0.1)
    assert found.unplanned == ("c",)
    assert found.sentences[0].endswith(" 1 finetune is not in this plan.")
    assert "Not in the plan, because no weights were measured: c." in found.sentences
    assert [need.served_as for need in found.finetunes] == [8, 8]


@pytest.mark.parametrize(
    "options",
    [{}, {"max_error": 0.1, "max_kld": 0.1}, {"max_error": 1.0}, {"max_kld": -1}, {"max_error": 0.1, "slots": 0}],
)
def test_a_plan_needs_one_limit_that_can_be_kept(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        PlanOptions(**options)
    assert error.value.slug == "bad-plan"


def test_the_ranks_must_be_those_of_slots() -> None:
    other = FleetFinetune("a", "a", FleetOutcome.MEASURED, losses=(Loss(5, 0, 0, 0, 1),))
    with pytest.raises(UsageError, match="No rank of vLLM's slots is measured"):
        plan(fleet(other, ranks=[5]), max_error=0.1)


def test_a_plan_is_stored_with_its_fleet() -> None:
    members = fleet(*(finetune(name, (0.8, 0.5, 0.25)) for name in "ab"))
    stored = replace(members, plan=plan(members, max_error=0.5, gpu_memory=1500))
    assert Fleet.from_json(stored.to_json()) == stored
