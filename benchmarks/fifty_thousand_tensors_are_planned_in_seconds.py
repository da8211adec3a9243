"""A pair of 50,000 tensors is planned from its headers in under 10 s, without reading a tensor.

    python benchmarks/fifty_thousand_tensors_are_planned_in_seconds.py [--quick]

Measures the whole of `deltarank compare BASE FINETUNE --dry-run`, with the start of the interpreter and all imports, in
three cases: equal names; names of the finetune with a prefix, which are matched without it; and globs, which are
compared with every name. The pair consists of real headers and sparse files (`_experts.py`). Ends with status 1 if a
plan takes longer than claimed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import _report
from _experts import Experts, write
from _process import run

NAME = Path(__file__).stem
CLAIMED_SECONDS = 10.0
WHOLE = Experts(layers=64, experts=260)
QUICK = Experts(layers=4, experts=20, shards=3)
MANNERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "names alike": ("finetune", ()),
    "names wrapped": ("wrapped", ()),
    "with globs": ("finetune", ("--include", "*experts*", "--exclude", "*.7.*")),
}


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="plans of each manner (default: %(default)s)")
    options = parser.parse_args()
    model = QUICK if options.quick else WHOLE
    with tempfile.TemporaryDirectory(prefix="deltarank-benchmark-") as temporary:
        home = Path(temporary)
        write(home / "base", model)
        tensors = write(home / "finetune", model)
        write(home / "wrapped", replace(model, wrapper="language_model."))
        walls = {manner: [_wall(home, manner) for _ in range(options.runs)] for manner in MANNERS}
    _report.save(f"{NAME}-quick" if options.quick else NAME, {"tensors": tensors, "walls": walls})
    print(_report.machine_line() + "\n")
    rows = [[manner, f"{tensors:,}", f"{statistics.median(found):.1f}"] for manner, found in walls.items()]
    print(_report.table(["plan", "tensors a side", "seconds"], rows))
    sys.exit(0 if max(map(statistics.median, walls.values())) < CLAIMED_SECONDS else 1)


def _wall(home: Path, manner: str) -> float:
    finetune, globs = MANNERS[manner]
    command = _report.python("-m", "deltarank", "compare", home / "base", home / finetune, "--dry-run", *globs)
    usage = run(command, home / "log")
    print(f"  {manner}: {usage.wall:.1f} s", file=sys.stderr, flush=True)
    return usage.wall


if __name__ == "__main__":
    main()
