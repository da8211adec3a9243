"""`deltarank compare` is faster than its peers: whole processes side by side in one run.

    python benchmarks/compare_is_faster_than_its_peers.py --peers PEERS_DIR [--quick] [--pair llama|12b|12b-two]

Claimed, on two cores (printed beside what was seen, never asserted: times are the machine's):
  Llama shape, 16 layers: rank 64 at least 25x the article's pipeline and 15x mergekit-extract-lora;
                         all servable ranks, exact, at least 10x the article's pipeline
  one layer of 12B:      rank 128 at least 40x the article's pipeline; all servable ranks, exact, at least 15x

Both deltarank runs stand before and after every peer's run; a ratio divides by the mean of its two neighbours, and the
median of these ratios is stated. All files are read once beforehand, so the disk is in nobody's time. What each
contestant does is in `benchmarks/README.md`.
"""

from __future__ import annotations

import json
import statistics
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _report
from _contest import NOTABLE_OTHERS, Contest, Contestant, Figures, disturbance, largest_difference
from _shapes import Pair, ensure

ARTICLE, MERGEKIT, MODELDELTA = "the article's pipeline", "mergekit-extract-lora", "modeldelta"
EXACT = "deltarank, all servable ranks, exact"
NAME = Path(__file__).stem


@dataclass(frozen=True)
class Heat:
    """One pair, the rank that its contestants are asked for, and the least ratios that are claimed for it."""

    title: str
    shape: str
    layers: int
    rank: int
    full_peers: bool
    claims: dict[tuple[str, bool], float]
    """(peer, against exact?) -> least ratio"""

    @property
    def ranked(self) -> str:
        return f"deltarank, rank {self.rank}"


HEATS = {
    "llama": Heat(
        "Llama shape", "llama", 16, 64, True, {(ARTICLE, False): 25, (MERGEKIT, False): 15, (ARTICLE, True): 10}
    ),
    "12b": Heat("one layer of 12B", "12b", 1, 128, False, {(ARTICLE, False): 40, (ARTICLE, True): 15}),
    "12b-two": Heat("two layers of 12B, of which the start is a smaller part", "12b", 2, 128, False, {}),
}
QUICK_HEATS = {"quick": Heat("a small pair for trying out", "small", 2, 64, True, {})}


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--peers", type=Path, default=_report.OUT / "peers", help="where peers/setup.sh put them")
    parser.add_argument("--pair", choices=HEATS, action="append", help="only this one (default: those of the claims)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each peer (12B: always 1; default: %(default)s)")
    options = parser.parse_args()
    claimed = [name for name, heat in HEATS.items() if heat.claims]
    heats = QUICK_HEATS if options.quick else {name: HEATS[name] for name in options.pair or claimed}
    figures: dict[str, Any] = {}
    print(_report.machine_line())
    for name, heat in heats.items():
        figures[name] = {"pair": None, "runs": []}
        section = run_heat(heat, options, figures[name], lambda: _report.save(save_as(options), figures))
        print("\n" + section, flush=True)
    print(f"\nraw figures: {_report.save(save_as(options), figures)}")


def save_as(options: Namespace) -> str:
    return f"{NAME}-quick" if options.quick else NAME


def run_heat(heat: Heat, options: Namespace, figures: dict[str, Any], save: Any) -> str:
    """Holds one contest and returns its table; `figures` fills up on the way."""
    pair = ensure(options.data, heat.shape, heat.layers)
    figures["pair"] = pair.recipe

    def log(runs: list[dict[str, Any]]) -> None:
        figures["runs"] = runs
        save()

    contest = Contest(references(heat, pair), list(peers(heat, pair, options)), log)
    contest.hold()
    figures["ratios"] = {
        peer.name: {reference.name: contest.ratios(peer.name, reference.name) for reference in contest.references}
        for peer in contest.peers
    }
    figures["largest_difference"] = differences(heat, contest)
    return "\n\n".join(
        [f"**{heat.title}** ({pair.title})", times(contest), claims(heat, contest), agreement(figures), quiet(contest)]
    )


def references(heat: Heat, pair: Pair) -> list[Contestant]:
    """The two runs of deltarank that everything is measured against."""

    def read(out: Path) -> Figures:
        return our_distances(out, heat.rank)

    return [
        Contestant(heat.ranked, lambda out: _report.deltarank(pair, out, "--ranks", str(heat.rank)), read=read),
        Contestant(EXACT, lambda out: _report.deltarank(pair, out, "--solver", "exact"), read=read),
    ]


def peers(heat: Heat, pair: Pair, options: Namespace) -> Iterator[Contestant]:
    """The others, as far as they are installed; the absent are named."""
    pipeline = Path(__file__).with_name("peers") / "article_pipeline.py"
    rounds = options.rounds if heat.full_peers else 1
    yield Contestant(
        ARTICLE,
        lambda out: _report.python(pipeline, pair.base, pair.finetune, "-o", out, "--rank", str(heat.rank)),
        rounds,
        article_distances,
    )
    if not heat.full_peers:
        return
    extract = options.peers / "mergekit" / "bin" / "mergekit-extract-lora"
    paths = ("--model", pair.finetune, "--base-model", pair.base)
    others = {
        extract: Contestant(
            MERGEKIT, lambda out: [extract, *paths, "--out-path", out, "--max-rank", str(heat.rank), "--quiet"], rounds
        ),
        (delta := options.peers / "modeldelta" / "bin" / "modeldelta"): Contestant(
            MODELDELTA, lambda out: [delta, pair.base, pair.finetune, "-q", "-o", f"{out}.json"], rounds
        ),
    }
    for program, contestant in others.items():
        if program.exists():
            yield contestant
        else:
            print(f"left out: {contestant.name} is not at {program} (run peers/setup.sh)", file=sys.stderr)


def our_distances(out: Path, rank: int) -> Figures:
    """Matrix -> cosine distance at this rank, from the results of `deltarank compare`."""
    matrices = json.loads((out / "results.json").read_text())["matrices"]
    return {m["name"]: loss["cosine_distance"] for m in matrices for loss in m["losses"] if loss["rank"] == rank}


def article_distances(out: Path) -> Figures:
    matrices = json.loads((out / "results.json").read_text())["matrices"]
    return {m["name"]: m["cosine_distance"] for m in matrices}


def differences(heat: Heat, contest: Contest) -> dict[str, float]:
    """Each deltarank run against the article's pipeline: the same answer, or the times mean nothing."""
    article = contest.figures[ARTICLE]
    return {name: largest_difference(contest.figures[name], article) for name in (heat.ranked, EXACT)}


def times(contest: Contest) -> str:
    ranked, exact = (reference.name for reference in contest.references)
    rows = []
    for contestant in [*contest.references, *contest.peers]:
        usage = contest.of(contestant.name)
        rows.append(
            [
                contestant.name,
                str(len(usage)),
                f"{statistics.median(each.wall for each in usage):.1f}",
                f"{statistics.median(each.cpu for each in usage):.1f}",
                f"{max(each.peak_rss for each in usage) / 1e9:.2f}",
                *(ratio(contest, contestant, reference) for reference in (ranked, exact)),
            ]
        )
    headers = ["", "runs", "wall, s", "cpu, s", "peak memory, GB", f"times {ranked}", f"times {exact}"]
    return _report.table(headers, rows)


def ratio(contest: Contest, contestant: Contestant, reference: str) -> str:
    if contestant in contest.references:
        return "1" if contestant.name == reference else ""
    return f"{statistics.median(contest.ratios(contestant.name, reference)):.1f}"


def claims(heat: Heat, contest: Contest) -> str:
    lines = []
    for (peer, against_exact), least in heat.claims.items():
        reference = EXACT if against_exact else heat.ranked
        seen = contest.ratios(peer, reference)
        if seen:
            word = "seen" if statistics.median(seen) >= least else "NOT seen"
            lines.append(f"- {reference}: at least {least:g}x {peer}: {word}, {statistics.median(seen):.1f}x")
    return "\n".join(lines) or "- nothing is claimed for this pair"


def quiet(contest: Contest) -> str:
    disturbed = [each for each in contest.runs if disturbance(each.usage)]
    if not disturbed:
        return "No run was disturbed by other work on the machine."
    worst = max(each.usage.others or 0.0 for each in disturbed)
    return (
        f"DISTURBED: in {len(disturbed)} of {len(contest.runs)} runs others kept more than {NOTABLE_OTHERS:g} cores "
        f"busy (at most {worst:.1f}): these times say little."
    )


def agreement(figures: dict[str, Any]) -> str:
    parts = [f"{name}: {value:.1e}" for name, value in figures["largest_difference"].items()]
    return "Largest difference of a cosine distance from the article's pipeline: " + "; ".join(parts) + "."


if __name__ == "__main__":
    main()
