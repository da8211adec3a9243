"""`deltarank.compare` agrees with a full SVD in float64 on adversarial spectra.

    python benchmarks/answers_agree_with_float64.py [--quick]

Claimed: |cosine distance - truth| <= 2e-4 with `auto`, <= 1e-6 with `exact`, and for planted rank-k deltas
stored in float32 a relative energy lost <= 1e-8 at every rank >= k. Ends with status 1 if one of these is broken.

Every spectrum is written at every size into two real checkpoint pairs, one in float32 and one in bf16, with a Gaussian
base 33 times as large as the delta, and measured with every solver, once at all servable ranks and once at rank 64
alone, where `auto` may choose otherwise. The truth is numpy's SVD in float64 of what was stored.
"""

from __future__ import annotations

import math
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import _report
import deltarank
from _spectra import PLANTED, SPECTRA, Matrix, share_lost
from deltarank.results import SERVABLE_RANKS, MatrixResult

NAME = Path(__file__).stem
SIZES = ((96, 96), (1, 3000), (3000, 1), (5, 20000), (20000, 5), (512, 2048), (2048, 512), (1024, 4096))
QUICK_SIZES = ((96, 96), (1, 300), (300, 1), (5, 2000), (2000, 5), (128, 300))
FULL_SIZE = (2048, 8192)
FULL_SIZE_SPECTRA = ("gaussian_bulk", "bulk_and_spikes", "clustered", "many_repeated", "planted_16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SOLVERS = ("auto", "exact", "krylov")
ASKED = {"rank 64": [64], "servable ranks": list(SERVABLE_RANKS)}
RELATIVE_NORM = 0.03
CLAIMED_DEVIATION = {"auto": 2e-4, "exact": 1e-6, "krylov": math.inf}
CLAIMED_LOST = 1e-8

Truth = dict[str, dict[int, float]]


@dataclass(frozen=True)
class Answer:
    """One matrix at one rank by one solver, beside the truth. `lost` is 1 - energy_kept."""

    spectrum: str
    size: tuple[int, int]
    dtype: str
    solver: str
    used: str | None
    asked: str
    rank: int
    cosine_distance: float
    true_cosine_distance: float
    lost: float

    @property
    def deviation(self) -> float:
        return abs(self.cosine_distance - self.true_cosine_distance)

    @property
    def breaks_a_claim(self) -> bool:
        # Written so that a NaN breaks it.
        return not self.deviation <= CLAIMED_DEVIATION[self.solver] or (
            self.is_planted and not self.lost <= CLAIMED_LOST
        )

    @property
    def is_planted(self) -> bool:
        """Nothing but float32 rounding is lost here."""
        return self.dtype == "fp32" and self.rank >= PLANTED.get(self.spectrum, sys.maxsize)


def main() -> None:
    options = _report.arguments(__doc__).parse_args()
    answers: list[Answer] = []
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory(prefix="deltarank-benchmark-") as folder:
            truth = write_pair(Path(folder), dtype, cases(options.quick))
            answers += ask_all(Path(folder), dtype, truth)
    saved = _report.save(f"{NAME}-quick" if options.quick else NAME, [asdict(answer) for answer in answers])
    broken = [answer for answer in answers if answer.breaks_a_claim]
    print(_report.machine_line() + "\n\n" + deviations(answers) + "\n\n" + planted_losses(answers))
    print(f"\n{len(answers):,} answers, {len(broken)} break a claim; raw figures: {saved}")
    for answer in broken[:20]:
        print(f"  {answer}: deviation {answer.deviation:.1e}")
    sys.exit(1 if broken else 0)


def cases(quick: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    yield from ((spectrum, size) for size in (QUICK_SIZES if quick else SIZES) for spectrum in SPECTRA)
    if not quick:
        yield from ((spectrum, FULL_SIZE) for spectrum in FULL_SIZE_SPECTRA)


def tensor_name(spectrum: str, size: tuple[int, int]) -> str:
    return f"model.layers.0.{spectrum}.{size[0]}x{size[1]}.weight"


def write_pair(folder: Path, dtype: str, wanted: Iterator[tuple[str, tuple[int, int]]]) -> Truth:
    """Writes folder/base and folder/finetune and returns, for each tensor, the true share lost at each rank."""
    base, finetune, truth = {}, {}, Truth()
    for spectrum, size in wanted:
        name = tensor_name(spectrum, size)
        base[name], finetune[name] = (torch.from_numpy(w).to(DTYPES[dtype]) for w in tensors(spectrum, size, name))
        truth[name] = share_lost((finetune[name].double() - base[name].double()).numpy(), list(SERVABLE_RANKS))
        print(f"  truth of {name}, {dtype}", file=sys.stderr, flush=True)
    for side, weights in (("base", base), ("finetune", finetune)):
        (folder / side).mkdir()
        save_file(weights, folder / side / "model.safetensors", metadata={"format": "pt"})
    return truth


def tensors(spectrum: str, size: tuple[int, int], name: str) -> tuple[Matrix, Matrix]:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    base = random.standard_normal(size)
    delta = SPECTRA[spectrum](*size, random)
    norm = np.linalg.norm(delta)
    return base, base + delta * (RELATIVE_NORM * np.linalg.norm(base) / norm if norm > 0 else 0.0)


def ask_all(folder: Path, dtype: str, truth: Truth) -> Iterator[Answer]:
    """Every solver at every set of ranks on one pair."""
    for solver in SOLVERS:
        for asked, ranks in ASKED.items():
            results = deltarank.compare(
                str(folder / "base"), str(folder / "finetune"), ranks=ranks, output=None, solver=solver
            )
            measured = {matrix.name: matrix for matrix in results.measured}
            if missing := truth.keys() - measured.keys():
                raise SystemExit(f"not measured by {solver}: {sorted(missing)}")
            for name in truth:
                yield from answers_of(measured[name], truth[name], dtype, solver, asked)


def answers_of(
    matrix: MatrixResult, true_lost: dict[int, float], dtype: str, solver: str, asked: str
) -> Iterator[Answer]:
    spectrum = matrix.name.split(".")[3]
    for loss in matrix.losses:
        share = true_lost[loss.rank]
        yield Answer(
            spectrum=spectrum,
            size=(matrix.shape[0], matrix.shape[1]),
            dtype=dtype,
            solver=solver,
            used=matrix.solver,
            asked=asked,
            rank=loss.rank,
            cosine_distance=loss.cosine_distance,
            true_cosine_distance=share / (1 + math.sqrt(1 - share)),
            lost=loss.energy_lost,
        )


def deviations(answers: list[Answer]) -> str:
    """The largest |cosine distance - truth| of each spectrum by solver and asked ranks."""
    columns = [(solver, asked) for solver in SOLVERS for asked in ASKED]
    rows = []
    for spectrum in SPECTRA:
        worst = [
            max(a.deviation for a in answers if (a.spectrum, a.solver, a.asked) == (spectrum, *column))
            for column in columns
        ]
        rows.append([spectrum.replace("_", " "), *(f"{value:.1e}" for value in worst)])
    return _report.table(["spectrum", *(f"{solver}, {asked}" for solver, asked in columns)], rows)


def planted_losses(answers: list[Answer]) -> str:
    """The largest energy lost of the planted deltas where nothing should be."""
    rows = []
    for spectrum, rank in PLANTED.items():
        worst = [
            max(a.lost for a in answers if a.is_planted and (a.spectrum, a.solver) == (spectrum, solver))
            for solver in SOLVERS
        ]
        rows.append([f"{spectrum.replace('_', ' ')}, at rank >= {rank}", *(f"{value:.1e}" for value in worst)])
    return _report.table(["relative energy lost, float32", *SOLVERS], rows)


if __name__ == "__main__":
    main()
