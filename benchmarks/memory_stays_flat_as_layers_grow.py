"""`deltarank compare` needs no more memory for more layers: peak RSS with 2, 4 and 8 layers, and against a bound.

    python benchmarks/memory_stays_flat_as_layers_grow.py [--quick]

Claimed: peak memory <= 1.0 GB + 3 x the largest measured matrix in float32, however many layers there are, for
every solver, for weights stored in bf16 and in float32. Peak memory is the kernel's `ru_maxrss`, which also counts
the touched pages of memory-mapped files. Ends with status 1 if the bound is broken.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import _report
from _process import Usage, run
from _shapes import Pair, ensure

NAME = Path(__file__).stem
FIXED_BYTES = 1_000_000_000
MATRICES_HELD = 3

Case = tuple[str, int, str]
CASES: tuple[Case, ...] = (
    ("llama", 2, "bf16"),
    ("llama", 4, "bf16"),
    ("llama", 8, "bf16"),
    ("llama", 2, "fp32"),
    ("12b", 1, "bf16"),
    ("70b", 1, "bf16"),
)
QUICK_CASES: tuple[Case, ...] = (("small", 2, "bf16"), ("small", 4, "bf16"), ("small", 2, "fp32"))
MODES = {"rank 64": ("--ranks", "64"), "all servable ranks, exact": ("--solver", "exact")}


@dataclass(frozen=True)
class Peak:
    pair: Pair
    mode: str
    usage: Usage

    @property
    def bound(self) -> int:
        return FIXED_BYTES + MATRICES_HELD * self.pair.shape.largest_matrix_bytes

    @property
    def holds(self) -> bool:
        return self.usage.peak_rss <= self.bound

    @property
    def weights(self) -> int:
        return sum(path.stat().st_size for path in self.pair.files())


def main() -> None:
    options = _report.arguments(__doc__).parse_args()
    name = f"{NAME}-quick" if options.quick else NAME
    peaks: list[Peak] = []
    print(_report.machine_line() + "\n")
    for peak in measured(options.data, QUICK_CASES if options.quick else CASES):
        peaks.append(peak)
        _report.save(name, [plain(each) for each in peaks])
        print(f"  {peak.pair.title}, {peak.mode}: {peak.usage.peak_rss / 1e9:.2f} GB", file=sys.stderr, flush=True)
    print(_report.table(HEADERS, map(row, peaks)))
    sys.exit(0 if all(peak.holds for peak in peaks) else 1)


def measured(data: Path, cases: tuple[Case, ...]) -> Iterator[Peak]:
    for case in cases:
        pair = ensure(data, *case)
        for mode, flags in MODES.items():
            with tempfile.TemporaryDirectory(prefix="deltarank-benchmark-") as folder:
                out, log = Path(folder, "out"), Path(folder, "log")
                yield Peak(pair, mode, run(_report.deltarank(pair, out, *flags), log))


HEADERS = ["pair", "mode", "both checkpoints, GB", "largest matrix in float32, GB", "peak, GB", "bound, GB", "holds"]


def row(peak: Peak) -> list[str]:
    numbers = (peak.weights, peak.pair.shape.largest_matrix_bytes, peak.usage.peak_rss, peak.bound)
    return [peak.pair.title, peak.mode, *(f"{n / 1e9:.2f}" for n in numbers), "yes" if peak.holds else "NO"]


def plain(peak: Peak) -> dict[str, object]:
    return {
        "pair": peak.pair.recipe,
        "mode": peak.mode,
        "bound": peak.bound,
        "checkpoint_bytes": peak.weights,
        **asdict(peak.usage),
    }


if __name__ == "__main__":
    main()
