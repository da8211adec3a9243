"""Results of a Llama-like shape made from invented spectra: the report's tests need numbers, not checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deltarank.results import AuditRow, Loss, MatrixResult, Outcome, Reference, Results, Skipped, Verdict, VerdictKind

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
LLAMA = {
    "self_attn.q_proj": (1024, 1024),
    "self_attn.k_proj": (256, 1024),
    "self_attn.v_proj": (256, 1024),
    "self_attn.o_proj": (1024, 1024),
    "mlp.gate_proj": (2816, 1024),
    "mlp.up_proj": (2816, 1024),
    "mlp.down_proj": (1024, 2816),
}
_STEEPNESS = {"q_proj": 0.9, "k_proj": 0.95, "v_proj": 0.88, "o_proj": 0.7, "gate_proj": 0.5, "up_proj": 0.48}

Spectrum = Callable[[str, int, int, int], np.ndarray]


def flat(module: str, layer: int, layers: int, side: int) -> np.ndarray:
    """A full finetune: a power law over the whole side, flatter for MLP modules and for late layers."""
    rng = np.random.default_rng([layer, len(module), sum(map(ord, module))])
    depth = layer / max(layers - 1, 1)
    slope = _STEEPNESS.get(module.rsplit(".", 1)[-1], 0.42) * (1.25 - 0.5 * depth) * rng.uniform(0.92, 1.08)
    return 0.08 * (1 + depth) * np.arange(1, side + 1) ** -slope


def low_rank(module: str, layer: int, layers: int, side: int) -> np.ndarray:
    """A merged LoRA of rank 16 with a rounding floor under it."""
    values = np.full(side, 2e-5)
    values[:16] = 0.3 * np.linspace(1, 0.2, 16) * (1 + layer / layers)
    return values


def merge(module: str, layer: int, layers: int, side: int) -> np.ndarray:
    """A merge of finetunes: flatter still."""
    return 1.4 * flat(module, layer, layers, side) ** 0.62


def losses_of(values: np.ndarray, ranks: Sequence[int], entries: int) -> tuple[Loss, ...]:
    squares = values**2
    total = math.fsum(squares)
    return tuple(Loss.from_energy(rank, lost=math.fsum(squares[rank:]), total=total, entries=entries) for rank in ranks)


def matrix(
    name: str,
    *,
    layer: int | None,
    module: str,
    shape: tuple[int, int],
    values: np.ndarray,
    ranks: Sequence[int] = RANKS,
    **changes: Any,
) -> MatrixResult:
    """A measured matrix with this spectrum."""
    squares = values**2
    total = float(squares.sum())
    shares = squares / total if total else squares
    kept = np.cumsum(squares) / total if total else np.ones_like(squares)
    nonzero = shares[shares > 0]
    side = min(shape)
    points = sorted({round(x) for x in np.geomspace(1, side, 20)})
    result = MatrixResult(
        name=name,
        layer=layer,
        module=module,
        shape=shape,
        outcome=Outcome.MEASURED if total else Outcome.IDENTICAL,
        dtype="bfloat16",
        max_rank=side,
        relative_norm=math.sqrt(total) / (0.02 * math.sqrt(math.prod(shape))),
        mean_abs=math.sqrt(2 * total / math.pi / math.prod(shape)),
        frobenius=math.sqrt(total),
        base_frobenius=0.02 * math.sqrt(math.prod(shape)),
        stable_rank=total / float(squares[0]) if total else None,
        effective_rank=float(np.exp(-(nonzero * np.log(nonzero)).sum())) if total else None,
        signal_rank=int((values > 4e-3).sum()),
        rounding_floor=0.012 if total else 0.0,
        noise_edge=4e-3,
        solver="exact",
        singular_values=tuple(float(v) for v in values),
        losses=losses_of(values, ranks, math.prod(shape)),
        curve=tuple((r, float(kept[r - 1])) for r in points),
        seconds=0.4,
    )
    return replace(result, **changes)


def model(
    spectrum: Spectrum = flat,
    *,
    layers: int = 4,
    shapes: Mapping[str, tuple[int, int]] = LLAMA,
    ranks: Sequence[int] = RANKS,
) -> list[MatrixResult]:
    return [
        matrix(
            f"model.layers.{layer}.{module}.weight",
            layer=layer,
            module=module,
            shape=shape,
            values=spectrum(module, layer, layers, min(shape)),
            ranks=ranks,
        )
        for layer in range(layers)
        for module, shape in shapes.items()
    ]


def not_finite(result: MatrixResult) -> MatrixResult:
    """The same matrix, had it held NaN."""
    return MatrixResult(
        name=result.name,
        layer=result.layer,
        module=result.module,
        shape=result.shape,
        outcome=Outcome.NOT_FINITE,
        dtype=result.dtype,
        max_rank=result.max_rank,
        reason="3 of its entries are NaN",
    )


def experts(layer: int, count: int = 4, ranks: Sequence[int] = RANKS) -> list[MatrixResult]:
    """The experts of one layer: all of the same module."""
    return [
        matrix(
            f"model.layers.{layer}.mlp.experts.down_proj[{i}]",
            layer=layer,
            module="mlp.experts.down_proj",
            shape=(256, 512),
            values=(i + 1) * np.arange(1, 257) ** -(0.4 + 0.2 * i),
            ranks=ranks,
        )
        for i in range(count)
    ]


def skipped(layers: int = 4) -> list[Skipped]:
    reason = "norms and biases, which a LoRA cannot represent"
    norms = [
        Skipped(f"model.layers.{i}.input_layernorm.weight", Outcome.NOT_A_MATRIX, reason, (1024,), 0.01, 0.0004)
        for i in range(layers)
    ]
    return [
        *norms,
        Skipped("model.embed_tokens.weight", Outcome.EMBEDDING, "32,000 rows", (32000, 1024), 3.1, 0.041),
        Skipped("lm_head.weight", Outcome.EXTRA_ROWS, "8 rows that only the finetune has", (8, 1024)),
    ]


def results(
    matrices: Sequence[MatrixResult] | None = None,
    *,
    name: str = "someone/Bigger-Body-12b",
    kind: VerdictKind = VerdictKind.FULL,
    sentences: Sequence[str] | None = None,
    ranks: Sequence[int] = RANKS,
    **changes: Any,
) -> Results:
    """A whole run around these matrices."""
    found = tuple(model() if matrices is None else matrices)
    short = name.rsplit("/", 1)[-1]
    result = Results(
        base=Reference("mistralai/Mistral-Nemo-Instruct-2407", "04d8a90", {"model-00001-of-00002.safetensors": 4.9e9}),
        finetune=Reference(name, "a1b2c3d", {"model.safetensors": 24_500_000_000}),
        settings={
            "ranks": list(ranks),
            "solver": "auto",
            "tolerance": 2e-4,
            "dtype": "float32",
            "device": "cpu",
            "seconds": 312.0,
            "command": f"deltarank compare mistralai/Mistral-Nemo-Instruct-2407 {name} -o runs/bb",
        },
        matrices=found,
        skipped=tuple(skipped()),
        verdict=Verdict(kind, tuple(sentences or (f"{short} is a full finetune or a merge.",))),
        tool_version="0.1.0",
        created="2026-11-24T05:00:00+00:00",
        notes=("`model.` of the base is `language_model.model.` in the finetune.",),
        audit=(AuditRow("model.layers.0.mlp.down_proj.weight", 64, 0.4120001, 0.41200007),),
    )
    return replace(result, **changes)


HOSTILE = "</script><img src=x onerror=alert(1)><!--\"'`\u202egnp.\u2028\n{{7*7}}"


def hostile() -> Results:
    """Every name that a checkpoint chooses is an attack, a direction mark, a new line, or far too long."""
    rows = [replace(m, name=f"{HOSTILE}{m.name}", dtype=HOSTILE) for m in model(layers=3)]
    rows += [replace(m, name="n" * 5000, module="m" * 5000, layer=0) for m in model(layers=1)[:1]]
    rows += [replace(not_finite(m), module=HOSTILE, layer=1, name=HOSTILE, reason=HOSTILE) for m in model(layers=1)[:1]]
    return results(
        rows,
        name=f"hub/{HOSTILE}",
        sentences=[f"{HOSTILE} keeps little.", "w" * 5000],
        skipped=(Skipped(HOSTILE, Outcome.ONLY_IN_BASE, HOSTILE), Skipped("x" * 5000, Outcome.TIED, HOSTILE)),
        notes=(HOSTILE, "y" * 5000),
        audit=(AuditRow(HOSTILE, 64, 0.1, 0.1),),
    )
