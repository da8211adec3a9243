"""How often `deltarank endpoints` tells a finetune from its LoRAs, by tokens and rank, all in the real llama.cpp.

    python benchmarks/endpoints_of_served_loras.py BASE FINETUNE [--ranks 2 8 32] [--test samples] [--runs 20]

Needs xllamacpp and llama.cpp's converters, as tests/servers does. The LoRAs are extracted for llama.cpp. By its lists,
the finetune is also compared with itself in a second process, and with itself in transformers. Each run has prompts of
its own and stops when it is decided, so that the runs give the power at every number of tokens. What the finetune
answers in a run is asked once, and compared with each of the others. Requests and tokens are those of the test, without
the probe.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import binomtest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "servers"), str(ROOT / "tests")]

from llama_cpp import LlamaCpp  # noqa: E402
from openai_server import MODEL, serve_gguf  # noqa: E402

import _report  # noqa: E402
import deltarank  # noqa: E402
from deltarank.jobs.endpoints.asking import Asker  # noqa: E402
from deltarank.jobs.endpoints.options import Caps, EndpointsOptions  # noqa: E402
from deltarank.jobs.endpoints.pair_tests import choose_test  # noqa: E402
from deltarank.jobs.endpoints.probe import Probe  # noqa: E402
from deltarank.jobs.endpoints.spending import BudgetSpentError, Spending  # noqa: E402
from deltarank.jobs.endpoints.test_loop import TestLoop  # noqa: E402
from deltarank.openai_api import EndpointClient, EndpointRef, Exchange, Request  # noqa: E402
from deltarank.results import Capabilities, EndpointApi, EndpointTestName  # noqa: E402
from fake_endpoint import FakeEndpoint, serving  # noqa: E402
from transformers_endpoint import serves  # noqa: E402

NAME = "endpoints_of_served_loras"
TESTS = ("first_token_logprobs", "greedy_first_token", "samples")
ALIKE = ("itself, in a second process", "itself, in transformers")
PATIENCE = 300.0
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What one run found, and the tokens that it had used after each prompt."""

    test: str
    other: str
    seed: int
    decided: str
    distance: float
    requests: int
    tokens: tuple[int, ...]

    def is_different_within(self, tokens: int) -> bool:
        return self.decided == "different" and self.tokens[-1] <= tokens


class LimitedAsker(Asker):
    """Stops after a number of prompts."""

    prompts_left = 0

    def ask_all(self, requests: Sequence[Request]) -> list[Exchange]:
        self.prompts_left -= 1
        if self.prompts_left < 0:
            raise BudgetSpentError("all prompts were asked")
        return super().ask_all(requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("finetune", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--test", choices=TESTS, action="append", help="all by default")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=100, help="of a run, at most")
    parser.add_argument("--alike", type=int, help="runs with the finetune itself; as many as others by default")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    tests, loras = given.test or TESTS, [f"LoRA of rank {rank}" for rank in given.ranks]
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        others = [*(ALIKE if TESTS[0] in tests else ()), *loras]
        addresses = served(others, given.base, given.finetune, Path(folder), servers)
        print(_report.machine_line())
        for test in tests:
            kept: dict[int, list[Record]] = {}
            alike = (given.runs if given.alike is None else given.alike) if test == TESTS[0] else 0
            for other, number in (*((each, alike) for each in ALIKE), *((each, given.runs) for each in loras)):
                if number:
                    pair = Pair.of(other, addresses["finetune"], addresses[other], given.prompts)
                    runs += [pair.run(test, seed, kept.setdefault(seed, [])) for seed in range(number)]
                _report.save("-".join([NAME, *(given.test or ())]), [asdict(each) for each in runs])
            print(f"\n{test}\n\n{table([each for each in runs if each.test == test])}", flush=True)


def served(others: Sequence[str], base: Path, finetune: Path, folder: Path, servers: ExitStack) -> dict[str, str]:
    """The address of each server, by what it serves."""
    llama = servers.enter_context(LlamaCpp(folder))

    def started(name: str, adapter: Path | None = None) -> str:
        return servers.enter_context(serve_gguf(folder / f"{name}.gguf", folder / f"{name}.log", adapter))

    for name, checkpoint in (("base", base), ("finetune", finetune)):
        done = llama.convert_model(checkpoint, folder / f"{name}.gguf")
        assert not done.failed, done.log
    addresses = {"finetune": started("finetune")}
    for other in others:
        if other == ALIKE[0]:
            addresses[other] = started("finetune")
        elif other == ALIKE[1]:
            (endpoint,) = servers.enter_context(serving(FakeEndpoint(name=MODEL, fault=serves(finetune))))
            addresses[other] = endpoint.url
        else:
            adapter = folder / other.replace(" ", "-")
            rank = int(other.rsplit(" ", 1)[1])
            deltarank.extract(base, finetune, output=adapter, rank=rank, server="llama.cpp")
            done = llama.convert_adapter(adapter, base, adapter.with_suffix(".gguf"))
            assert not done.failed, done.log
            addresses[other] = started("base", adapter.with_suffix(".gguf"))
    return addresses


@dataclass(frozen=True)
class Pair:
    """The finetune, A, and another model, B; what both can do; and how many prompts a run has at most."""

    other: str
    refs: Mapping[str, EndpointRef]
    capabilities: Mapping[str, Capabilities]
    prompts: int

    @classmethod
    def of(cls, other: str, a: str, b: str, prompts: int) -> Pair:
        refs = {"a": EndpointRef(MODEL, a), "b": EndpointRef(MODEL, b)}
        with closing(asker(refs, [], lambda record: None)) as asking:
            return cls(other, refs, Probe(asking, refs, 0).ask(EndpointApi.COMPLETIONS), prompts)

    def run(self, test: str, seed: int, kept: list[Record]) -> Run:
        """One run. `kept` has what A answered to the same prompts, and gets what it answers now."""
        options = EndpointsOptions(seed, EndpointApi.COMPLETIONS, EndpointTestName(test))
        chosen, reasons = choose_test(options, self.capabilities)
        assert chosen is not None, reasons
        keep = lambda record: kept.append(record) if record["side"] == "a" else None  # noqa: E731
        with closing(asker(self.refs, kept, keep)) as asking:
            asking.prompts_left = self.prompts
            found, _ = TestLoop(chosen, self.refs, options, asking, lambda *_: None).run()
        assert found is not None
        decided = found.decided.value if found.decided else "undecided"
        tokens = tuple(each.tokens for each in found.evidence)
        return Run(test, self.other, seed, decided, found.statistic, 2 * chosen.draws * found.n, tokens)


def asker(refs: Mapping[str, EndpointRef], records: Sequence[Record], keep: Callable[[Record], None]) -> LimitedAsker:
    clients = {side: EndpointClient(side.upper(), ref, timeout=PATIENCE) for side, ref in refs.items()}
    spending = dict.fromkeys(refs, Spending(Caps(max_requests=10**6, max_tokens=10**9)))
    found = LimitedAsker(clients, spending, records, keep, concurrency=1)
    found.prompts_left = 10**6
    return found


def table(runs: Sequence[Run]) -> str:
    """The share of runs that have called B different within some numbers of tokens, with 95 % intervals."""
    most = max(each.tokens[-1] for each in runs)
    marks = [mark for mark in (250 * 2**i for i in range(1, 16)) if mark < 2 * most]
    heads = ["B", "runs", "distance", *(f"different within {mark:,} tokens" for mark in marks)]
    rows = []
    for other in dict.fromkeys(each.other for each in runs):
        own = [each for each in runs if each.other == other]
        ends = [sum(each.decided == kind for each in own) for kind in ("same", "undecided")]
        powers = [share(sum(each.is_different_within(mark) for each in own), len(own)) for mark in marks]
        spent = f"{median(each.requests for each in own):g}", f"{median(each.tokens[-1] for each in own):,.0f}"
        distance = f"{sum(each.distance for each in own) / len(own):.2g}"
        rows.append([other, str(len(own)), distance, *powers, *map(str, ends), *spent])
    return _report.table([*heads, "same", "undecided", "requests (median)", "tokens (median)"], rows)


def share(number: int, runs: int) -> str:
    interval = binomtest(number, runs).proportion_ci()
    return f"{100 * number / runs:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


if __name__ == "__main__":
    main()
