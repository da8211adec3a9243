"""The rank plan of a fleet: which finetunes are served as LoRAs, at which rank, and what the memory for it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from deltarank.results.codec import Count, Rank


class PlanMeasure(StrEnum):
    """What the limit of a plan is about."""

    RELATIVE_ERROR = "relative_error"
    KLD = "kld"

    def in_words(self, limit: str) -> str:
        if self is PlanMeasure.KLD:
            return f"a KL divergence of at most {limit} nats per token"
        return f"a relative error of at most {limit}"


@dataclass(frozen=True)
class FinetuneNeed:
    """What one finetune needs.

    rank          the smallest servable rank within the limit; null: none that was measured
    weight_bytes  of its own weights, as they are stored
    served_as     the rank of the slots of the plan; null: it is served with its own weights
    """

    name: str
    rank: Rank | None
    weight_bytes: Count
    served_as: Rank | None = None


@dataclass(frozen=True)
class RankCost:
    """What it takes to serve the fleet with slots of one rank.

    rank         `--max-lora-rank`: every slot is allocated for it
    within       how many finetunes are within the limit at this rank
    need_higher  how many need a higher rank; `need_own`: how many are within the limit at no rank
    slot_bytes   of one slot
    slots        how many slots: those asked for, or one for each finetune that is served as a LoRA, if these are fewer
    as_loras     how many finetunes are served as LoRAs; the others with their own weights
    server_bytes the base and the slots; 0 if nothing is served as a LoRA
    own_bytes    the own weights of the others
    most_slots   how many slots fit beside the base in the memory of the GPU; null if that was not given
    fits         whether the base with its slots, and each of the other models, fit; true if no memory was given
    """

    rank: Rank
    within: Count
    need_higher: Count
    need_own: Count
    slot_bytes: Count
    slots: Count
    as_loras: Count
    server_bytes: Count
    own_bytes: Count
    most_slots: Count | None
    fits: bool

    @property
    def total_bytes(self) -> int:
        return self.server_bytes + self.own_bytes


@dataclass(frozen=True)
class RankPlan:
    """Which ranks serve a fleet within a limit, and what that takes.

    measure       what the limit is about; `limit` is inclusive
    slots         how many adapters are served at once (`--max-loras`)
    gpu_memory    bytes of the GPU that has the base and the slots; null if it was not given
    base_bytes    of the base's tensors, as they are stored
    slot_numbers  the numbers of a slot of rank 1
    costs         at each servable rank that was measured, the cheapest way
    chosen        the rank of the cheapest plan that fits; null: none fits, or nothing is served as a LoRA
    finetunes     what each needs, and how the plan serves it
    unplanned     the finetunes of which the measure is not known
    sentences     the plan in words
    tensor_parallel  over how many GPUs each model is divided; all bytes, and slot_numbers, are those of one of them
    """

    measure: PlanMeasure
    limit: float
    slots: Count
    gpu_memory: Count | None
    base_bytes: Count
    slot_numbers: Count
    costs: tuple[RankCost, ...]
    chosen: Rank | None
    finetunes: tuple[FinetuneNeed, ...]
    unplanned: tuple[str, ...]
    sentences: tuple[str, ...]
    tensor_parallel: Count = 1

    @property
    def cheapest(self) -> RankCost | None:
        """The costs at the rank that the plan chose."""
        return next((cost for cost in self.costs if cost.rank == self.chosen), None)

    def check(self) -> None:
        """Raises ValueError unless it says something, of a rank that is among the costs."""
        if not self.sentences or (self.chosen is not None and self.cheapest is None):
            raise ValueError("no sentence, or a rank without costs - at `$.plan`")
