"""A fleet of many finetunes made up of numbers: families of relatives, merges, duplicates, and some that failed."""

import base64
import math
from dataclasses import replace

import numpy as np

from deltarank.jobs.fleet import PlanOptions, find_kinship, plan_ranks
from deltarank.results import (
    DeltaSketch,
    Fleet,
    FleetFinetune,
    FleetOutcome,
    Loss,
    RankDivergence,
    Reference,
    VerdictKind,
)

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
NUMBERS, BYTES = 4096, 24_000_000_000


def made_up_fleet(count: int, *, hostile: str = "", with_plan: bool = True, with_kinship: bool = True) -> Fleet:
    """`count` finetunes of one base. The first one is called `hostile`, if that is given."""
    drawn = np.random.default_rng(count)
    families = drawn.standard_normal((max(count // 12, 1), NUMBERS))
    names = [f"org-{i % 17}/Model-{i:03}-12b-v{1 + i % 4}".replace("/", "--") for i in range(count)]
    names[0] = hostile or names[0]
    deltas = {}
    for i, name in enumerate(names):
        family = families[i % len(families)] * drawn.choice([0, 0.4, 1.2])
        deltas[name] = family + drawn.standard_normal(NUMBERS)
    if count > 10:
        deltas[names[7]] = 0.37 * deltas[names[1]] + 0.35 * deltas[names[2]] + 0.29 * deltas[names[3]]
        deltas[names[9]] = deltas[names[4]]
    rows = tuple(_row(i, name, drawn) for i, name in enumerate(names))
    fleet = Fleet(
        base=Reference("org/Base-12b", "4f1a9c", {"model.safetensors": 24_000_000_000}),
        settings={
            "ranks": list(RANKS),
            "solver": "auto",
            "base_bytes": 24_000_000_000,
            "base_bytes_read": 24_000_000_000,
        },
        finetunes=rows,
        tool_version="0.1",
        created="2026-11-29T08:00:00Z",
    )
    if with_plan:
        options = PlanOptions(max_error=0.6, slots=16, gpu_memory=48_000_000_000)
        fleet = replace(fleet, plan=plan_ranks(fleet, options, base_bytes=24_000_000_000, slot_numbers=4_000_000))
    if with_kinship:
        sketches = {name: DeltaSketch(NUMBERS, {"all": _encoded(delta)}) for name, delta in deltas.items()}
        fleet = replace(fleet, kinship=find_kinship(rows, sketches))
    return fleet


def _encoded(delta: np.ndarray) -> str:
    return base64.b64encode(delta.astype("<f4").tobytes()).decode()


def _row(i: int, name: str, drawn: np.random.Generator) -> FleetFinetune:
    if i % 40 == 13:
        return FleetFinetune.failed(name, name, "model-00002-of-00005.safetensors is missing, which the index names.")
    speed = drawn.uniform(0.3, 1.1)
    kept = [1 - math.exp(-speed * (rank / 64) ** 0.6) for rank in RANKS]
    losses = tuple(
        Loss(rank, 1e-9, 1 - math.sqrt(share), math.sqrt(1 - share), share)
        for rank, share in zip(RANKS, kept, strict=True)
    )
    kld = tuple(RankDivergence(loss.rank, loss.relative_error / 10, None, None) for loss in losses) if i % 2 else ()
    return FleetFinetune(
        name=name,
        reference=name,
        outcome=FleetOutcome.MEASURED,
        run=name,
        verdict=VerdictKind.MERGED_LORA if i % 5 == 0 else VerdictKind.FULL,
        matrices=280,
        parameters=11_000_000_000,
        energy=float(i),
        relative_norm=float(drawn.uniform(0.005, 0.09)),
        rounding_floor=0.02,
        losses=losses,
        kld=kld,
        weight_bytes=24_000_000_000,
    )
