"""How near `extract --calibrate` comes to finetunes of SmolLM2-135M-Instruct, and what it costs.

    python benchmarks/calibrated_extraction.py --data DATA [--legs full:8:own,merge:8:own] [--steps N] [--tokens N]

A leg is a finetune, a rank, and the text: `own`, or a file in DATA/smollm2. Its figures are those of deltarank.json: on
documents that neither fitted nor chose. Finished legs are kept and not measured again. DATA/smollm2 is made by
real_language_model.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _report
from _process import run
from deltarank.results import duration, figure, percent

NAME = Path(__file__).stem
LEGS = "merge:8:own,lora:8:own,full:32:own,full:8:own,full:16:own,full:4:own,full:64:own,full:8:bible-cal.jsonl"
QUICK = ("--steps", "2", "--calibration-tokens", "2000")


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--legs", default=LEGS, help="separated by commas (default: %(default)s)")
    parser.add_argument("--steps", help="as for extract")
    parser.add_argument("--tokens", help="--calibration-tokens of extract")
    options = parser.parse_args()
    given = (("--steps", options.steps), ("--calibration-tokens", options.tokens))
    more = [word for name, value in given if value for word in (name, value)]
    name = f"{NAME}-quick" if options.quick else NAME
    figures: dict[str, Any] = _report.load(name) or {}
    for leg in options.legs.split(","):
        if leg not in figures:
            print(leg, file=sys.stderr, flush=True)
            figures[leg] = _measured(options.data / "smollm2", leg, QUICK if options.quick else more)
            _report.save(name, figures)
    print("\n\n".join([_report.machine_line(), *(_table(figures, part) for part in ("held_out", "other_text"))]))


def _measured(data: Path, leg: str, more: Sequence[str]) -> dict[str, Any]:
    """Runs one leg. What the command prints is kept beside the adapter."""
    finetune, rank, text = leg.split(":")
    adapter = data / "calibrated" / leg.replace(":", "-")
    adapter.parent.mkdir(exist_ok=True)
    given = text if text == "own" else data / text
    command = ("extract", data / "base", data / finetune, "-r", rank, "--calibrate", given, "-o", adapter, *more)
    usage = run(_report.python("-m", "deltarank", *command), adapter.with_suffix(".log"))
    written = json.loads((adapter / "deltarank.json").read_text())
    threads = os.environ.get("OMP_NUM_THREADS")
    return {**written["calibration"], "wall": usage.wall, "cpu": usage.cpu, "others": usage.others, "threads": threads}


def _table(figures: dict[str, Any], part: str) -> str:
    """Mean KL divergences from the finetune in nats per token, on `held_out` or `other_text`."""
    headers = ["finetune", "rank", "calibrated on", "steps", "documents", "base", "plain", "any rank", "calibrated"]
    headers += ["95 % interval", "below plain", "same top token: plain", "calibrated", "time", "CPU seconds"]
    rows = [_row(leg, known, known[part]) for leg, known in figures.items()]
    return f"{part}:\n\n" + _report.table(headers, rows)


def _row(leg: str, known: dict[str, Any], score: dict[str, Any]) -> list[str]:
    klds = (score[f"kld_{model}"] for model in ("base", "plain", "any_rank", "calibrated"))
    gains = [score[name] for name in ("gain", "gain_low", "gain_high")]
    gain = "" if None in gains else f"{percent(gains[0])} ({percent(gains[1])} to {percent(gains[2])})"
    return [
        *leg.split(":"),
        str(known["steps_made"]),
        str(score["documents"]),
        *("" if kld is None else figure(kld) for kld in klds),
        "" if score["low"] is None else f"{figure(score['low'])} to {figure(score['high'])}",
        gain,
        percent(score["same_top_plain"]),
        percent(score["same_top_calibrated"]),
        duration(known["wall"]),
        f"{known['cpu']:.0f}",
    ]


if __name__ == "__main__":
    main()
