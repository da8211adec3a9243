"""What `extract --calibrate` costs, beside an earlier version of deltarank: whole processes, in turns, in one run.

    python benchmarks/calibration_costs_less_than_before.py --data DATA --before SRC [--steps N] [--tokens N]

SRC is the folder `src` of another checkout. DATA/smollm2 is made by real_language_model.py. The finetune is the full
one, the rank is 8, and the text its own answers.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import _report
from _process import run
from deltarank.results import duration, figure, percent

NAME = Path(__file__).stem
NOW = Path(__file__).parent.parent / "src"


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--before", type=Path, required=True, help="the src of the other version")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    steps, tokens = (2, 2000) if options.quick else (options.steps, options.tokens)
    more = ("--steps", str(steps), "--calibration-tokens", str(tokens))
    figures: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        for version, source in (("before", options.before), ("now", NOW)):
            figures.append({"version": version, **_measured(options.data / "smollm2", source.resolve(), more)})
            _report.save(f"{NAME}-quick" if options.quick else NAME, {"options": more, "runs": figures})
    print(f"{_report.machine_line()}\n\n{steps} steps, {tokens:,} tokens.\n\n{_table(figures)}")


def _measured(data: Path, source: Path, more: tuple[str, ...]) -> dict[str, Any]:
    adapter = data / "calibrated" / NAME
    adapter.parent.mkdir(exist_ok=True)
    for folder in (adapter, adapter.with_name(f"{NAME}.calibrating")):
        shutil.rmtree(folder, ignore_errors=True)
    command = ("extract", data / "base", data / "full", "-r", "8", "--calibrate", "own", "-o", adapter, *more)
    usage = run(_report.python("-m", "deltarank", *command), adapter.with_suffix(".log"), {"PYTHONPATH": str(source)})
    held_out = json.loads((adapter / "deltarank.json").read_text())["calibration"]["held_out"]
    return {
        "cpu": usage.cpu,
        "wall": usage.wall,
        "others": usage.others,
        "peak_rss": usage.peak_rss,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "held_out": held_out,
    }


def _table(figures: list[dict[str, Any]]) -> str:
    headers = ["version", "CPU seconds", "time", "other programs", "peak memory", "plain", "calibrated", "below plain"]
    return _report.table(headers, [_row(each) for each in figures])


def _row(known: dict[str, Any]) -> list[str]:
    score = known["held_out"]
    others = "" if known["others"] is None else f"{known['others']:.1f} cores"
    return [
        known["version"],
        f"{known['cpu']:.0f}",
        duration(known["wall"]),
        others,
        f"{known['peak_rss'] / 1e9:.2f} GB",
        figure(score["kld_plain"]),
        figure(score["kld_calibrated"]),
        percent(score["gain"]),
    ]


if __name__ == "__main__":
    main()
