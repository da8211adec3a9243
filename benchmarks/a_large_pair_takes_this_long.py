"""How long `deltarank compare` takes on the article's 12B and 70B pairs: extrapolated from one measured layer.

    python benchmarks/a_large_pair_takes_this_long.py [--runs 2] [--quick]

The extrapolation, all terms medians of whole processes measured in one run:

    time = fixed + layers * (time of the one-layer pair - fixed) + entries outside the layers * time an entry
    fixed          a pair with next to no weights: start, imports, page
    time an entry  (pair with 32,768 words - pair with 512 words) / difference in entries; embeddings and `lm_head` are
                   not measured, but read to say how much of the change they hold

All layers of these models have the same shapes. It leaves out what a disk takes that is slower than the arithmetic (the
bytes to read are stated; here the files lie in the page cache) and a page that grows with the layers. The article's
pipeline is extrapolated in the same way from the run of `compare_is_faster_than_its_peers.py`, for 70B by
rows * columns * min(rows, columns), the work of a full SVD.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _report
from _contest import disturbance
from _process import run
from _shapes import SHAPES, Pair, Shape, ensure
from deltarank.results import duration

NAME = Path(__file__).stem
MODES = {
    "rank 64": ("--ranks", "64"),
    "rank 128": ("--ranks", "128"),
    "all servable ranks, exact": ("--solver", "exact"),
}
WORDS = ("few_words", "many_words")
ARTICLE = "the article's pipeline"


@dataclass(frozen=True)
class Model:
    """One of the article's models: Mistral Nemo 12B, Llama 3.3 70B."""

    title: str
    shape_name: str
    layers: int
    vocabulary: int

    @property
    def shape(self) -> Shape:
        return SHAPES[self.shape_name]

    @property
    def word_entries(self) -> int:
        """`embed_tokens` and `lm_head`."""
        return 2 * self.vocabulary * self.shape.hidden

    @property
    def pair_bytes(self) -> int:
        """Both checkpoints in bf16."""
        return 2 * 2 * (self.layers * self.shape.layer_entries + self.word_entries)


MODELS = (Model("12B, 40 layers", "12b", 40, 131072), Model("70B, 80 layers", "70b", 80, 128256))
QUICK_MODELS = (Model("small, 40 layers", "small", 40, 512),)


@dataclass(frozen=True)
class Costs:
    """Seconds: of an empty run, of an entry outside the layers, and of one layer by (shape, mode)."""

    fixed: float
    word_entry: float
    layer: dict[tuple[str, str], float]

    def total(self, model: Model, mode: str) -> float:
        return self.fixed + model.layers * self.layer[model.shape_name, mode] + model.word_entries * self.word_entry


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--runs", type=int, default=2, help="runs of each pair and mode (default: %(default)s)")
    options = parser.parse_args()
    models = QUICK_MODELS if options.quick else MODELS
    name = f"{NAME}-quick" if options.quick else NAME
    walls = measure(options.data, models, options.runs, name)
    costs = costs_of(walls, models)
    print(_report.machine_line() + "\n")
    print(_report.table(HEADERS, [row(costs, model, mode) for model in models for mode in MODES]))
    print(
        f"\nFixed: {costs.fixed:.1f} s. A billion entries outside the layers: {1e9 * costs.word_entry:.1f} s.\n"
        + article(models)
    )


def measure(data: Path, models: tuple[Model, ...], runs: int, name: str) -> dict[str, list[float]]:
    """Pair and mode -> wall seconds; all pairs and modes in turn, then all again."""
    pairs = {shape: ensure(data, shape, 1) for shape in (*WORDS, *(m.shape_name for m in models))}
    walls: dict[str, list[float]] = {}
    for _ in range(runs):
        for shape, pair in pairs.items():
            for mode in modes_of(shape):
                walls.setdefault(key(shape, mode), []).append(wall(pair, mode))
                _report.save(name, {"walls": walls})
    return walls


def modes_of(shape: str) -> list[str]:
    """The pairs of words hold next to no matrix: there the mode makes no difference."""
    return ["rank 64"] if shape in WORDS else list(MODES)


def key(shape: str, mode: str) -> str:
    return f"{shape} | {mode}"


def wall(pair: Pair, mode: str) -> float:
    with tempfile.TemporaryDirectory(prefix="deltarank-benchmark-") as folder:
        usage = run(_report.deltarank(pair, Path(folder, "out"), *MODES[mode]), Path(folder, "log"))
    print(f"  {key(pair.shape_name, mode)}: {usage.wall:.1f} s{disturbance(usage)}", file=sys.stderr, flush=True)
    return usage.wall


def costs_of(walls: dict[str, list[float]], models: tuple[Model, ...]) -> Costs:
    median = {name: statistics.median(seconds) for name, seconds in walls.items()}
    fixed, wordy = median[key("few_words", "rank 64")], median[key("many_words", "rank 64")]
    few, many = SHAPES["few_words"], SHAPES["many_words"]
    entries = 2 * (many.vocabulary - few.vocabulary) * many.hidden
    layer = {(m.shape_name, mode): median[key(m.shape_name, mode)] - fixed for m in models for mode in MODES}
    return Costs(fixed, max(0.0, (wordy - fixed) / entries), layer)


HEADERS = ["pair", "mode", "one layer, measured, s", "whole pair, extrapolated", "both checkpoints, GB"]


def row(costs: Costs, model: Model, mode: str) -> list[str]:
    layer, total = costs.layer[model.shape_name, mode], max(0.0, costs.total(model, mode))
    return [model.title, mode, f"{layer:.1f}", duration(total), f"{model.pair_bytes / 1e9:.0f}"]


def article(models: tuple[Model, ...]) -> str:
    """The article's pipeline on the same pairs, from its measured run on one 12B layer."""
    figures: Any = _report.load("compare_is_faster_than_its_peers")
    runs = (figures or {}).get("12b", {}).get("runs", [])
    walls = [each["wall"] for each in runs if each["contestant"] == ARTICLE]
    if not walls:
        return f"{ARTICLE}: run compare_is_faster_than_its_peers.py first to have it extrapolated here."
    per_work = statistics.median(walls) / SHAPES["12b"].svd_work
    hours = [f"{m.title}: {m.layers * m.shape.svd_work * per_work / 3600:.0f} h" for m in models]
    return f"{ARTICLE}, extrapolated from {statistics.median(walls):.0f} s for one 12B layer: " + "; ".join(hours) + "."


if __name__ == "__main__":
    main()
