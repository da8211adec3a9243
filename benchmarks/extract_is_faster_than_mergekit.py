"""`deltarank extract` is faster than mergekit-extract-lora, and loses no more: whole processes side by side in one run.

    python benchmarks/extract_is_faster_than_mergekit.py --data DATA --peers PEERS [--quick] [--rounds 2]

Claimed, on two cores (times and memory are printed beside what was seen, never asserted: they are the machine's):
  Llama shape, 16 layers, rank 64: at least 15x as fast, and less memory
Asserted (exit status 1): in every matrix that both extract, and in all of them together, deltarank loses no more than
1e-5 of the change beyond what mergekit's adapter loses. Both adapters are measured by `deltarank verify`, which reads
them from disk and shares no code with the writer.

Both deltarank runs stand before and after every run of mergekit; a ratio divides by the mean of its two neighbours, and
the median of these ratios is stated. After that, what either leaves out, by kind of tensor: of the Llama pair, and of a
small pair with experts, biases, a tied vocabulary and added tokens (`odd_pair.py`). mergekit is run with its defaults,
and on the latter once more with embeddings as LoRA; a program that fails there is told.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import struct
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _report
from _contest import NOTABLE_OTHERS, Contest, Contestant, Figures, disturbance
from _process import RunFailedError, run
from _shapes import ensure

RANK = 64
CLAIM = 15.0
ALLOWED = 1e-5
"""Of the energy of the change: what both store is rounded to bfloat16."""

PEFT, PORTABLE, MERGEKIT = "deltarank --server peft", "deltarank --server portable", "mergekit-extract-lora"
NAME = Path(__file__).stem

KINDS = {
    "experts": re.compile(r"\.experts\."),
    "routers": re.compile(r"\.gate\.weight$|\.router\."),
    "norms": re.compile(r"norm\d?\.(weight|bias)$"),
    "biases": re.compile(r"\.bias$"),
    "lm_head": re.compile(r"lm_head"),
    "embeddings": re.compile(r"embed"),
    "other matrices": re.compile(""),
}
"""By the first that is found in a tensor's name."""


@dataclass(frozen=True)
class Places:
    """Base and finetune on disk."""

    base: Path
    finetune: Path


@dataclass
class Seen:
    """What `deltarank verify` found in the adapter of each contestant, by name."""

    places: Places
    found: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    added: dict[str, bool] = field(default_factory=dict)

    def reader(self, name: str) -> Callable[[Path], Figures]:
        """Verifies an adapter where the contest would read results; once, and in nobody's time."""

        def read(out: Path) -> Figures:
            if name not in self.found:
                self.look(name, out)
            return losses(self.found[name])

        return read

    def look(self, name: str, adapter: Path) -> None:
        command = ("-m", "deltarank", "verify", self.places.base, self.places.finetune, adapter, "--json", "-q")
        done = subprocess.run([str(part) for part in _report.python(*command)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RunFailedError(f"verify of {name}'s adapter: {done.stderr.strip()[-500:]}")
        self.found[name] = json.loads(done.stdout)
        self.files[name] = sum(path.stat().st_size for path in adapter.glob("*.safetensors"))
        self.added[name] = holds_added_tokens(adapter, self.places)


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--peers", type=Path, default=_report.OUT / "peers", help="where peers/setup.sh put them")
    parser.add_argument("--rounds", type=int, default=2, help="runs of mergekit (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=16, help="of the Llama shape (default: %(default)s)")
    options = parser.parse_args()
    program = options.peers / "mergekit" / "bin" / "mergekit-extract-lora"
    if not program.exists():
        sys.exit(f"mergekit-extract-lora is not at {program}: run peers/setup.sh {options.peers}")
    figures: dict[str, Any] = {}
    print(_report.machine_line())
    good = race(options, program, figures) & left_out(options, program, figures)
    print(f"\nraw figures: {_report.save(save_as(options), figures)}")
    sys.exit(0 if good else 1)


def save_as(options: Namespace) -> str:
    return f"{NAME}-quick" if options.quick else NAME


def race(options: Namespace, program: Path, figures: dict[str, Any]) -> bool:
    """Times, memory and losses on the Llama shape; whether the losses are what is asserted."""
    pair = ensure(options.data, "small", 2) if options.quick else ensure(options.data, "llama", options.layers)
    seen = Seen(Places(pair.base, pair.finetune))

    def log(runs: list[dict[str, Any]]) -> None:
        figures["runs"] = runs
        _report.save(save_as(options), figures)

    contest = Contest(
        [contestant(name, seen, ours(name, seen.places)) for name in (PEFT, PORTABLE)],
        [contestant(MERGEKIT, seen, mergekit(program, seen.places), options.rounds)],
        log,
    )
    contest.hold()
    excesses = {name: excess(seen.found[name], seen.found[MERGEKIT]) for name in (PEFT, PORTABLE)}
    figures |= {"pair": pair.recipe, "excess": excesses, "left out, llama": by_kind_plain(seen)}
    figures["ratios"] = {name: contest.ratios(MERGEKIT, name) for name in (PEFT, PORTABLE)}
    print(f"\n**{pair.title}, rank {RANK}**\n\n{times(contest, seen)}\n\n{claims(contest, options)}\n{quiet(contest)}")
    print(f"\nWhat each leaves out of the change, {pair.title}:\n\n{kept_table(seen)}", flush=True)
    print()
    seen_both = [verdict(name, value) for name, value in excesses.items()]  # both are printed, whatever the first is
    return all(seen_both)


def left_out(options: Namespace, program: Path, figures: dict[str, Any]) -> bool:
    """What each makes of a pair with experts, biases, a tied and resized vocabulary. Nothing is claimed of it."""
    folder = options.data / "odd-pair"
    subprocess.run([sys.executable, str(Path(__file__).with_name("odd_pair.py")), str(folder)], check=True)
    seen = Seen(Places(folder / "base", folder / "finetune"))
    tries = {name: ours(name, seen.places) for name in (PEFT, PORTABLE)}
    tries[MERGEKIT] = mergekit(program, seen.places)
    tries[f"{MERGEKIT} --embed-lora"] = mergekit(program, seen.places, "--embed-lora")
    failed = {}
    for name, command in tries.items():
        with tempfile.TemporaryDirectory(prefix="deltarank-benchmark-") as room:
            try:
                run(command(Path(room, "out")), Path(room, "log"))
                seen.look(name, Path(room, "out"))
            except RunFailedError as error:
                failed[name] = last_line(error)
    figures |= {"left out, odd pair": by_kind_plain(seen), "failed on the odd pair": failed}
    print("\nThe same of a small mixture of experts with biases, a tied vocabulary and added tokens:\n")
    print(kept_table(seen))
    for name, reason in failed.items():
        print(f"- {name} fails: {reason}")
    return PEFT in seen.found and PORTABLE in seen.found


def contestant(name: str, seen: Seen, command: Callable[[Path], Sequence[str | Path]], rounds: int = 1) -> Contestant:
    return Contestant(name, command, rounds, seen.reader(name))


def ours(name: str, places: Places) -> Callable[[Path], Sequence[str | Path]]:
    server = name.rsplit(" ", 1)[1]
    asked = ("extract", places.base, places.finetune, "-r", str(RANK), "--server", server, "-q")
    return lambda out: _report.python("-m", "deltarank", *asked, "-o", out)


def mergekit(program: Path, places: Places, *options: str) -> Callable[[Path], Sequence[str | Path]]:
    paths = ("--model", places.finetune, "--base-model", places.base, "--max-rank", str(RANK), "--quiet")
    return lambda out: [program, *paths, "--out-path", out, *options]


def losses(found: Mapping[str, Any]) -> Figures:
    """Matrix with a LoRA -> the share of its change that is lost."""
    return {row["name"]: row["share_lost"] for row in found["tensors"] if row["change"] == "lora" and row["energy"] > 0}


def excess(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """How much more of the change our adapter loses than theirs, where both have a LoRA: at most, and of all together.

    Raises:
        ValueError: they have no matrix in common.
    """
    rows = {row["name"]: row for row in theirs["tensors"] if row["change"] == "lora" and row["energy"] > 0}
    both = [(row, rows[row["name"]]) for row in mine["tensors"] if row["change"] == "lora" and row["name"] in rows]
    if not both:
        raise ValueError("no matrix has a LoRA in both adapters")
    energy = math.fsum(own["energy"] for own, _ in both)
    return {
        "matrices": len(both),
        "at most": max((own["lost"] - other["lost"]) / own["energy"] for own, other in both),
        "together": math.fsum(own["lost"] - other["lost"] for own, other in both) / energy,
    }


def verdict(name: str, seen: Mapping[str, float]) -> bool:
    good = max(seen["at most"], seen["together"]) <= ALLOWED
    print(
        f"- {name} against {MERGEKIT}, {seen['matrices']:.0f} matrices: loses {seen['together']:+.1e} of the change "
        f"more, in one matrix at most {seen['at most']:+.1e} (claimed: {ALLOWED:g}): {'seen' if good else 'NOT SEEN'}"
    )
    return good


def times(contest: Contest, seen: Seen) -> str:
    rows = []
    for each in [*contest.references, *contest.peers]:
        usage = contest.of(each.name)
        touched = seen.found[each.name]["touched"]
        rows.append(
            [
                each.name,
                str(len(usage)),
                f"{statistics.median(one.wall for one in usage):.1f}",
                f"{statistics.median(one.cpu for one in usage):.1f}",
                f"{max(one.peak_rss for one in usage) / 1e9:.2f}",
                f"{seen.files[each.name] / 1e6:.0f}",
                f"{touched['share_lost']:.8f}",
                f"{touched['share_best']:.8f}",
                *(ratio(contest, each.name, reference.name) for reference in contest.references),
            ]
        )
    headers = [
        "",
        "runs",
        "wall, s",
        "cpu, s",
        "peak memory, GB",
        "adapter, MB",
        "lost in its matrices",
        "least possible",
    ]
    return _report.table([*headers, *(f"times {reference.name}" for reference in contest.references)], rows)


def ratio(contest: Contest, name: str, reference: str) -> str:
    if any(name == each.name for each in contest.references):
        return "1" if name == reference else ""
    return f"{statistics.median(contest.ratios(name, reference)):.1f}"


def claims(contest: Contest, options: Namespace) -> str:
    if options.quick:
        return "- of time and memory nothing is claimed for this pair"
    lines = []
    for name in (PEFT, PORTABLE):
        times_as_fast = statistics.median(contest.ratios(MERGEKIT, name))
        word = "seen" if times_as_fast >= CLAIM else "NOT seen"
        lines.append(f"- {name}: at least {CLAIM:g}x as fast as {MERGEKIT}: {word}, {times_as_fast:.1f}x")
        own, theirs = (max(one.peak_rss for one in contest.of(each)) for each in (name, MERGEKIT))
        lines.append(f"- {name}: less memory: {'seen' if own < theirs else 'NOT seen'}, {own / 1e9:.2f} GB")
    return "\n".join(lines)


def quiet(contest: Contest) -> str:
    disturbed = [each for each in contest.runs if disturbance(each.usage)]
    if not disturbed:
        return "- no run was disturbed by other work on the machine"
    return (
        f"- DISTURBED: in {len(disturbed)} of {len(contest.runs)} runs others kept more than {NOTABLE_OTHERS:g} cores "
        "busy: these times say little"
    )


def by_kind(found: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Kind -> (its share of the whole change, the share of that which the adapter keeps)."""
    rows = [row for row in found["tensors"] if row["outcome"] in ("measured", "identical")]
    whole = math.fsum(row["energy"] for row in rows)
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        kind = next(name for name, pattern in KINDS.items() if pattern.search(row["name"]))
        kinds.setdefault(kind, []).append((row["energy"], row["lost"]))
    shares = {}
    for kind, parts in kinds.items():
        energy, lost = (math.fsum(column) for column in zip(*parts, strict=True))
        if energy > 0:
            shares[kind] = (energy / whole, 1 - lost / energy)
    return shares


def by_kind_plain(seen: Seen) -> dict[str, Any]:
    return {name: by_kind(found) | {"added tokens": seen.added[name]} for name, found in seen.found.items()}


def kept_table(seen: Seen) -> str:
    """A row for each contestant: what it keeps of the change of each kind of tensor."""
    tables = {name: by_kind(found) for name, found in seen.found.items()}
    kinds = [kind for kind in KINDS if any(kind in table for table in tables.values())]
    shares = next(iter(tables.values()), {})
    heads = ["kept of the change of", *(f"{kind} ({percent(shares.get(kind, (0.0, 0.0))[0])} of it)" for kind in kinds)]
    rows = []
    for name, table in tables.items():
        found = seen.found[name]
        cells = [percent(table[kind][1]) if kind in table else "" for kind in kinds]
        whole = found["whole"]["share_lost"]
        extra = [percent(1 - whole), "yes" if seen.added[name] else "no", str(len(found["unused"]))]
        rows.append([name, *cells, *extra])
    return _report.table([*heads, "everything", "added tokens", "tensors that PEFT passes over"], rows)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def holds_added_tokens(adapter: Path, places: Places) -> bool:
    """Whether a table of words in the adapter is longer than the base's."""
    base = max((rows(shape) for path in places.base.glob("*.safetensors") for shape in words(path)), default=0)
    return any(rows(shape) > base for path in adapter.glob("*.safetensors") for shape in words(path))


def rows(shape: Sequence[int]) -> int:
    return shape[0] if len(shape) == 2 else 0


def words(path: Path) -> list[Sequence[int]]:
    """The shapes of the tables of words that a file stores whole, by its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return [
        entry["shape"]
        for name, entry in header.items()
        if name != "__metadata__" and ("embed_tokens" in name or "lm_head" in name) and "lora_" not in name
    ]


def last_line(error: RunFailedError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "without a word"


if __name__ == "__main__":
    main()
