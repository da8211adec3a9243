"""`deltarank compare --stream` from a server on this machine beside the same run from the disk.

    python benchmarks/streaming_keeps_up_with_the_disk.py [--quick]

Claimed: where the solver is the bound, streaming takes at most 1/0.8 of the time of reading the same pair from the
disk; peak memory stays within the bound of `compare` (1.0 GB + 3 x the largest matrix in float32); bytes asked for over
bytes needed <= 1.05; one request to the Hub for each file, whatever number of tensors it holds. Times are stated;
bytes, requests and memory are asserted (exit status 1).

The server is the tests' Hub, in Python, in the process of this benchmark: what it takes of the processor is stated with
the row (`others`), for a real Hub takes none of ours. Runs from the disk stand before and after each streamed one.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import _report
from _process import Usage, run
from _shapes import Pair, ensure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hub import FakeHub, client_environment

NAME = Path(__file__).stem
FIXED_BYTES = 1_000_000_000
MATRICES_HELD = 3
MOST_OVERREAD = 1.05

Case = tuple[str, int, str]
CASES: tuple[Case, ...] = (("llama", 4, "bf16"), ("12b", 1, "bf16"))
QUICK_CASES: tuple[Case, ...] = (("small", 2, "bf16"),)
MODES = {"rank 64": ("--ranks", "64"), "all servable ranks, exact": ("--solver", "exact")}


@dataclass(frozen=True)
class Row:
    """One pair in one mode: two runs from the disk around one that streams.

    needed, asked    bytes of all weight files; bytes of the ranges that were asked for
    resolved         requests for weights to the Hub itself, which counts them
    parts            requests to the storage behind it
    """

    pair: Pair
    mode: str
    disk: tuple[Usage, Usage]
    stream: Usage
    needed: int
    asked: int
    resolved: int
    parts: int

    @property
    def files(self) -> int:
        return len(list(self.pair.files()))

    @property
    def bound(self) -> int:
        return FIXED_BYTES + MATRICES_HELD * self.pair.shape.largest_matrix_bytes

    @property
    def speed(self) -> float:
        """Of the disk's, 1.0 is as fast."""
        return mean(usage.wall for usage in self.disk) / self.stream.wall

    @property
    def holds(self) -> bool:
        small = self.needed < 64 * self.files * (256 << 10)  # headers' requests are a share of such files
        lean = small or self.asked <= MOST_OVERREAD * self.needed
        return lean and self.resolved == self.files and self.stream.peak_rss <= self.bound


def main() -> None:
    options = _report.arguments(__doc__).parse_args()
    name = f"{NAME}-quick" if options.quick else NAME
    rows: list[Row] = []
    print(_report.machine_line() + "\n")
    for case in QUICK_CASES if options.quick else CASES:
        pair = ensure(options.data, *case)
        for mode, flags in MODES.items():
            rows.append(measured(pair, mode, flags))
            _report.save(name, [plain(row) for row in rows])
    print(_report.table(HEADERS, map(cells, rows)))
    sys.exit(0 if all(row.holds for row in rows) else 1)


def measured(pair: Pair, mode: str, flags: tuple[str, ...]) -> Row:
    with tempfile.TemporaryDirectory(prefix="deltarank-benchmark-") as folder, FakeHub() as hub:
        hub.add("org/base", pair.base)
        hub.add("org/finetune", pair.finetune)
        home, log = Path(folder, "home"), Path(folder, "log")
        online = client_environment(hub, home) | {"HF_HUB_OFFLINE": "0"}
        ids = ("org/base", "org/finetune", "--stream")
        # A dry run has the server hash its files, which the real Hub has done long before.
        run(_report.python("-m", "deltarank", "compare", *ids, "--dry-run"), log, online)
        before = run(_report.deltarank(pair, Path(folder, "before"), *flags), log)
        hub.forget()
        command = _report.python("-m", "deltarank", "compare", *ids, "-o", Path(folder, "streamed"), "-q", *flags)
        stream = run(command, log, online)
        after = run(_report.deltarank(pair, Path(folder, "after"), *flags), log)
        return Row(
            pair=pair,
            mode=mode,
            disk=(before, after),
            stream=stream,
            needed=sum(path.stat().st_size for path in pair.files()),
            asked=sum(part.nbytes for part in hub.sent),
            resolved=sum(path.endswith(".safetensors") for method, path in hub.requests if method == "GET"),
            parts=len(hub.sent),
        )


HEADERS = [
    "pair", "mode", "disk, s", "streamed, s", "speed", "others, cores", "asked/needed", "Hub requests a file",
    "parts a file", "peak, GB", "bound, GB", "holds",
]  # fmt: skip


def cells(row: Row) -> list[str]:
    others = row.stream.others
    return [
        row.pair.title,
        row.mode,
        f"{mean(usage.wall for usage in row.disk):.1f}",
        f"{row.stream.wall:.1f}",
        f"{row.speed:.2f}",
        "" if others is None else f"{others:.2f}",
        f"{row.asked / row.needed:.3f}",
        f"{row.resolved / row.files:.2f}",
        f"{row.parts / row.files:.1f}",
        f"{row.stream.peak_rss / 1e9:.2f}",
        f"{row.bound / 1e9:.2f}",
        "yes" if row.holds else "NO",
    ]


def plain(row: Row) -> dict[str, object]:
    counts = {"needed": row.needed, "asked": row.asked, "resolved": row.resolved, "parts": row.parts}
    disk = [asdict(usage) for usage in row.disk]
    return {"pair": row.pair.recipe, "mode": row.mode, "disk": disk, "stream": asdict(row.stream), **counts}


if __name__ == "__main__":
    main()
