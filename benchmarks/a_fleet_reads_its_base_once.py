"""`deltarank fleet` with many finetunes beside one `deltarank compare` for each: time, bytes read, memory.

    python benchmarks/a_fleet_reads_its_base_once.py [--shape llama] [--layers 2] [--finetunes 12] [--quick]

Claimed: the numbers are equal; the fleet reads the base once, so about half as much; its memory is that of one
comparison, plus its share of the base. In each round, every comparison runs once and then the fleet. Neither draws a
page. Ends with status 1 if a number differs, or if more than 1.02 times the base was read.

The finetunes are made from the pair of `pairs.py`: its finetune plus Gaussian noise of another seed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _report
from _process import Usage, run
from _shapes import Pair, ensure

NAME = Path(__file__).stem

MAKE = """
import sys, torch
from safetensors.torch import load_file, save_file
source, target, seed = sys.argv[1:]
generator = torch.Generator().manual_seed(int(seed))
weights = load_file(source)
for name, w in weights.items():
    w += (0.01 * w.float().std().nan_to_num() * torch.randn(w.shape, generator=generator)).to(w.dtype)
save_file(weights, target)
"""


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--shape", default="llama")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--finetunes", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ranks", default="64")
    asked = parser.parse_args()
    if asked.quick:
        asked.shape, asked.finetunes = "small", 3
    print(_report.machine_line() + "\n")
    pair = ensure(asked.data, asked.shape, asked.layers)
    with tempfile.TemporaryDirectory(prefix="deltarank-benchmark-", dir=asked.data) as folder:
        finetunes = [finetune(pair, Path(folder, "ft", f"tuned-{seed}"), seed) for seed in range(asked.finetunes)]
        rounds = [hold(asked, pair, finetunes, Path(folder, f"round-{i}")) for i in range(asked.rounds)]
    name = f"{NAME}-{asked.shape}-{asked.finetunes}" + ("-quick" if asked.quick else "")
    _report.save(name, [{key: asdict(usage) for key, usage in each.items()} for each in rounds])
    weights = sum(path.stat().st_size for path in pair.base.glob("*.safetensors"))
    print(f"{pair.title}, {weights / 1e9:.2f} GB a checkpoint, {asked.finetunes} finetunes, ranks {asked.ranks}.\n")
    print(_report.table(HEADERS, [row for each in rounds for row in rows(each, asked.finetunes)]))


def finetune(pair: Pair, folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    for source in pair.finetune.iterdir():
        if source.suffix == ".safetensors":
            subprocess.run(_report.python("-c", MAKE, source, folder / source.name, str(seed)), check=True)
        else:
            shutil.copy(source, folder)
    return folder


def hold(asked: Namespace, pair: Pair, finetunes: Sequence[Path], folder: Path) -> dict[str, Usage]:
    """One round."""
    folder.mkdir()
    log, flags = folder / "log", ["-q", "--ranks", asked.ranks]
    single = [
        run(
            _report.python(
                "-m", "deltarank", "compare", pair.base, each, *flags, "--no-report", "-o", folder / each.name
            ),
            log,
        )
        for each in finetunes
    ]
    command = _report.python("-m", "deltarank", "fleet", pair.base, *finetunes, *flags, "-o", folder / "fleet")
    whole = run(command, log)
    check(folder, finetunes)
    return {"compare": added(single), "fleet": whole}


def added(usages: Sequence[Usage]) -> Usage:
    return Usage(
        sum(each.wall for each in usages),
        sum(each.cpu for each in usages),
        max(each.peak_rss for each in usages),
        sum((each.others or 0.0) * each.wall for each in usages) / sum(each.wall for each in usages),
        sum(each.read or 0 for each in usages),
    )


def check(folder: Path, finetunes: Sequence[Path]) -> None:
    """Ends the program where the fleet's numbers are not those of `compare`, or the base was read twice."""
    for each in finetunes:
        if numbers(folder / "fleet" / each.name) != numbers(folder / each.name):
            sys.exit(f"{each.name}: the numbers differ")
    known = json.loads((folder / "fleet" / "fleet.json").read_text())["settings"]
    if known["base_bytes_read"] > 1.02 * known["base_bytes"]:
        sys.exit(f"{known['base_bytes_read']:,} bytes of {known['base_bytes']:,} were read of the base")


def numbers(run_folder: Path) -> Any:
    stored = json.loads((run_folder / "results.json").read_text())
    del stored["created"], stored["settings"]
    for matrix in stored["matrices"]:
        del matrix["seconds"]
    return stored


HEADERS = ["", "wall, s", "processor, s", "processor, s a finetune", "read, GB", "peak memory, GB", "others, cores"]


def rows(usages: dict[str, Usage], number: int) -> list[list[str]]:
    return [
        [
            f"{number} x `compare`" if name == "compare" else "`fleet`",
            f"{usage.wall:.1f}",
            f"{usage.cpu:.1f}",
            f"{usage.cpu / number:.2f}",
            f"{(usage.read or 0) / 1e9:.2f}",
            f"{usage.peak_rss / 1e9:.2f}",
            f"{usage.others or 0:.2f}",
        ]
        for name, usage in usages.items()
    ]


if __name__ == "__main__":
    main()
