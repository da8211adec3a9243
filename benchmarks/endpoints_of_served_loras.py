"""`deltarank endpoints` between a finetune and its LoRAs, both in the real llama.cpp: verdicts, requests and tokens.

    python benchmarks/endpoints_of_served_loras.py BASE FINETUNE [--ranks 2 8 32] [--seeds 3]

Needs xllamacpp and llama.cpp's converters, as tests/servers does. The LoRAs are extracted for llama.cpp. The finetune
is also compared with itself, in two processes, and with itself in transformers. Requests and tokens are those of the
test, without the probe.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "servers"), str(ROOT / "tests")]

from llama_cpp import LlamaCpp  # noqa: E402
from openai_server import MODEL, serve_gguf  # noqa: E402

import deltarank  # noqa: E402
from fake_endpoint import FakeEndpoint, serving  # noqa: E402
from transformers_endpoint import serves  # noqa: E402

TESTS = ("first_token_logprobs", "greedy_first_token", "samples")
ALIKE = ("itself, in another process", "itself, in transformers")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("finetune", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        folder = Path(name)
        llama = servers.enter_context(LlamaCpp(folder))
        addresses = served(llama, given.base, given.finetune, given.ranks, folder, servers)
        print("| B | test | verdicts | prompts | requests | tokens | distance |")
        print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
        for other in (*ALIKE, *(f"LoRA of rank {rank}" for rank in given.ranks)):
            for test in TESTS[:1] if other in ALIKE else TESTS:
                a, b = (f"{MODEL}@{addresses[each]}" for each in ("finetune", other))
                print_row(other, test, [run(a, b, test, seed, folder / "run") for seed in range(given.seeds)])


def served(
    llama: LlamaCpp, base: Path, finetune: Path, ranks: list[int], folder: Path, servers: ExitStack
) -> dict[str, str]:
    """The address of each server, by what it serves."""

    def started(name: str, adapter: Path | None = None) -> str:
        return servers.enter_context(serve_gguf(folder / f"{name}.gguf", folder / f"{name}.log", adapter))

    for name, checkpoint in (("base", base), ("finetune", finetune)):
        done = llama.convert_model(checkpoint, folder / f"{name}.gguf")
        assert not done.failed, done.log
    (transformers,) = servers.enter_context(serving(FakeEndpoint(name=MODEL, fault=serves(finetune))))
    addresses = {"finetune": started("finetune"), ALIKE[0]: started("finetune"), ALIKE[1]: transformers.url}
    for rank in ranks:
        adapter = folder / f"lora-{rank}"
        deltarank.extract(base, finetune, output=adapter, rank=rank, server="llama.cpp")
        done = llama.convert_adapter(adapter, base, adapter.with_suffix(".gguf"))
        assert not done.failed, done.log
        addresses[f"LoRA of rank {rank}"] = started("base", adapter.with_suffix(".gguf"))
    return addresses


def run(a: str, b: str, test: str, seed: int, folder: Path) -> deltarank.EndpointResults:
    return deltarank.compare_endpoints(a, b, output=folder, api="completions", test=test, seed=seed, force=True)


def print_row(other: str, test: str, found: list[deltarank.EndpointResults]) -> None:
    kinds = [each.verdict.kind.value for each in found]
    tests = [each.endpoints.tests[0] for each in found]
    requests = [each.n * (8 if test == "samples" else 4) for each in tests]
    print(
        f"| {other} | {test} | {', '.join(f'{kinds.count(kind)} {kind}' for kind in sorted({*kinds}))} "
        f"| {span(each.n for each in tests)} | {span(requests)} | {span(each.evidence[-1].tokens for each in tests)} "
        f"| {min(each.statistic for each in tests):.2g} to {max(each.statistic for each in tests):.2g} |",
        flush=True,
    )


def span(values: Iterator[int] | list[int]) -> str:
    found = sorted(values)
    return f"{found[0]:,} to {found[-1]:,}" if found[0] < found[-1] else f"{found[0]:,}"


if __name__ == "__main__":
    main()
