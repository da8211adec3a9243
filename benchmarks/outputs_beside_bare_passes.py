"""`deltarank outputs` beside bare forward passes of the same tokens in transformers, and beside llama.cpp.

    python benchmarks/outputs_beside_bare_passes.py BASE FINETUNE [--setting small] [--rounds 1] [--gguf FILE]

Asked: how much `outputs` costs over the passes that it cannot do without. A pass is one call of the model on a batch of
documents of up to 2,048 tokens, which returns all logits. Each model is loaded from its folder, as a script that
compares models does. The passes read as many tokens as `outputs` does: for each model the texts and the finetune's
answers, for a control and for a truncated part its documents, and for each model that answers as many prompts and
answers as the finetune's are long.

Rounds are interleaved: outputs, bare passes, outputs, ... A ratio is that of the two in one round. Wall times mean
something on an idle machine only; processor times are stated beside them, and so is what other programs used. The
weights are measured once, before the first round, and count for neither. The figures are saved after each run, so what
was measured is there if a later one does not end. The default takes a few minutes for a model of 135 million parameters
on two idle cores.

--gguf: llama.cpp's server (xllamacpp) evaluates the same documents. It computes logits for the last token of each
alone, in the GGUF's own quantisation, so its time is a lower bound of what its perplexity tool takes.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import _report
import deltarank
from _process import Usage, run
from deltarank.results import CandidateKind

NAME = Path(__file__).stem
PEERS = Path(__file__).with_name("peers")

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "small": {"quick": True, "max_tokens": 16},
    "quick": {"quick": True},
    "default": {},
    "layers": {"attribute": "layer"},
}
OUTPUTS, BARE, LLAMA = "outputs", "bare passes", "llama.cpp, documents"


@dataclass(frozen=True)
class Work:
    """Documents of these lengths are read `times` times, for which `models` models are loaded."""

    lengths: Sequence[int]
    times: int
    models: int


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("base")
    parser.add_argument("finetune")
    parser.add_argument("--setting", choices=SETTINGS, default="small")
    parser.add_argument("--text", help="a text that is read beside the answers")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--gguf")
    asked = parser.parse_args()
    print(_report.machine_line() + "\n")
    runs: dict[str, list[Usage]] = {}
    with tempfile.TemporaryDirectory(prefix="deltarank-benchmark-") as folder:
        for leg, usage, tokens in hold(asked, Path(folder)):
            runs.setdefault(leg, []).append(usage)
            figures = {name: [asdict(each) for each in usages] for name, usages in runs.items()}
            _report.save(f"{NAME}-{asked.setting}", {"tokens": tokens, **figures})
            print(f"{leg}: {usage.wall:.0f} s, {usage.cpu:.0f} s of processors", flush=True)
    print(f"\n`outputs`, setting {asked.setting}: {tokens:,} tokens are read or generated.\n")
    print(_report.table(HEADERS, [cells(name, usages, runs[BARE]) for name, usages in runs.items()]))


def hold(asked: Namespace, folder: Path) -> Iterator[tuple[str, Usage, int]]:
    """Each run, by what was run, and the number of tokens."""
    log, work_file, weights = folder / "log", folder / "work.json", folder / "weights"
    run(
        _report.python("-m", "deltarank", "compare", asked.base, asked.finetune, "-o", weights, "-q", "--no-report"),
        log,
    )
    for number in range(asked.rounds):
        out = folder / f"run-{number}"
        shutil.copytree(weights, out)
        ours = run(outputs_command(asked, out), log)
        work = work_of(asked, out)
        tokens = sum(sum(each.lengths) * each.times for each in work)
        work_file.write_text(json.dumps([asdict(each) for each in work]))
        yield OUTPUTS, ours, tokens
        yield BARE, run(_report.python(PEERS / "bare_passes.py", asked.finetune, work_file), log), tokens
        if asked.gguf:
            yield LLAMA, run(_report.python(PEERS / "llama_cpp_passes.py", asked.gguf, work_file), log), tokens


def outputs_command(asked: Namespace, out: Path) -> list[str | Path]:
    words = []
    for name, value in SETTINGS[asked.setting].items():
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, ",".join(map(str, value if name == "ranks" else [value]))]
    words += ["--text", asked.text] if asked.text else []
    return _report.python(
        "-m", "deltarank", "outputs", asked.base, asked.finetune, "-o", out, "-q", "--no-report", *words
    )


def work_of(asked: Namespace, out: Path) -> list[Work]:
    """What that run has read and generated."""
    found = deltarank.open_results(out).outputs
    assert found is not None
    texts = [asked.text] if asked.text else []
    plan = deltarank.plan_outputs(asked.base, asked.finetune, texts=texts, **SETTINGS[asked.setting])
    prompts = [len(prompt.ids(plan.inputs.tokenizer)) for prompt in plan.inputs.prompts]
    own = [each for each in found.candidate("base").logits[-1].by_document if each.name.startswith("prompt ")]
    answers = [each.tokens + prompts[int(each.name.split()[1].rstrip(",")) - 1] for each in own]
    kinds = [each.kind for each in found.candidates]
    controls = kinds.count(CandidateKind.CONTROL)
    few = first(plan.document_lengths, plan.options.control_tokens) + first(answers, plan.options.control_tokens)
    noted = re.search(r"attribution reads (\d+) of", " ".join(found.notes))
    parts = answers[: int(noted[1])] if noted else answers
    return [
        Work([*plan.document_lengths, *answers], len(kinds) + 1 - controls, len(kinds) + 1 - controls),
        Work(few, controls, controls),
        Work(answers, 2 + sum(each.writing is not None for each in found.candidates), 0),
        Work(parts, plan.part_count, min(plan.part_count, 1)),
    ]


def first(lengths: Sequence[int], tokens: int) -> list[int]:
    return [each for i, each in enumerate(lengths) if sum(lengths[: i + 1]) <= tokens] or list(lengths[:1])


HEADERS = ["", "wall, s", "processor, s", "others, cores", "wall / bare", "processor / bare"]


def cells(name: str, usages: Sequence[Usage], bare: Sequence[Usage]) -> list[str]:
    others = [usage.others for usage in usages if usage.others is not None]
    pairs = list(zip(usages, bare, strict=True))
    return [
        name,
        f"{median(usage.wall for usage in usages):.1f}",
        f"{median(usage.cpu for usage in usages):.1f}",
        f"{median(others):.2f}" if others else "",
        f"{median(ours.wall / theirs.wall for ours, theirs in pairs):.2f}",
        f"{median(ours.cpu / theirs.cpu for ours, theirs in pairs):.2f}",
    ]


if __name__ == "__main__":
    main()
