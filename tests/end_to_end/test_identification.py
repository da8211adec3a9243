"""`deltarank endpoints A [B] --weights BASE FINETUNE`: which model a server over transformers serves."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import peft_adapters as made
from commands import Finished, RunCommand
from deltarank.divergence import PLAIN, SETTINGS, log_probabilities_by_setting
from deltarank.openai_api import fresh_prompt
from deltarank.results import EndpointApi, EndpointResults, Identification
from fake_endpoint import FakeEndpoint, serving
from sampling_server import SamplingServer
from some_tokenizers import byte_level
from tiny_architectures import best_approximation

SHARPER = 18.0
"""Letters and digits get larger rows of the head, so that they are what is sampled: half of a character has no text."""

END = 1
"""The id of `</s>`."""

Ask = Callable[..., Finished]


def tiny_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": END}
    return LlamaForCausalLM(LlamaConfig(vocab_size=261, max_position_embeddings=128, **special, **sizes))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, finetune, rank-8 (base + D_8, by an SVD in float64) and third, another finetune."""
    home = tmp_path_factory.mktemp("identification")
    base = made.write_base(tiny_llama, home / "base")
    weights, tokenizer = made.tensors(base), byte_level()
    letters = [number for piece, number in tokenizer.get_vocab().items() if piece.isascii() and piece.isalnum()]
    weights["lm_head.weight"][letters] *= SHARPER
    weights |= {key: torch.ones_like(w) for key, w in weights.items() if "norm" in key}
    _write(weights, base, base)
    for seed, name in ((1, "finetune"), (2, "third")):
        generator = torch.Generator().manual_seed(seed)
        noise = {key: 0.05 * torch.randn(w.shape, generator=generator) for key, w in weights.items() if "_proj" in key}
        _write({key: w + noise.get(key, 0) for key, w in weights.items()}, base, home / name)
    tuned = made.tensors(home / "finetune")
    low = {
        key: w + torch.from_numpy(best_approximation((tuned[key] - w).double().numpy(), 8)).float()
        for key, w in weights.items()
        if "_proj" in key
    }
    _write({**weights, **low}, base, home / "rank-8")
    return home


def _write(weights: dict[str, torch.Tensor], base: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    config = (base / "config.json").read_bytes()
    (folder / "config.json").write_bytes(config)
    save_file({key: w.contiguous() for key, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    byte_level().save_pretrained(folder)


@pytest.fixture
def ask(models: Path, command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*words: object, base: str = "base", finetune: str = "finetune") -> Finished:
        weights = ("--weights", models / base, models / finetune)
        return command("endpoints", *words, *weights, "-o", tmp_path / "run", "--seed", 5, "--completions")

    return run


def found(tmp_path: Path) -> Identification:
    identification = EndpointResults.load(tmp_path / "run").endpoints.identification
    assert identification is not None
    return identification


def serves(models: Path, name: str, **settings: Any) -> FakeEndpoint:
    return FakeEndpoint(fault=SamplingServer.of(models / name, models / "base", **settings))


@pytest.mark.parametrize(
    ("name", "best", "verdict"),
    [
        pytest.param("base", "base", "different", marks=pytest.mark.slow),
        pytest.param("rank-8", "rank 8", "different", marks=pytest.mark.slow),
        ("finetune", "finetune", "same"),
    ],
)
def test_lists_tell_what_is_served(models: Path, ask: Ask, tmp_path: Path, name: str, best: str, verdict: str) -> None:
    with serving(serves(models, name)) as (server,):
        done = ask(server.reference, "--check", "--json")
    assert done.out, done.err

    identification, results = found(tmp_path), EndpointResults.load(tmp_path / "run")
    by_name = {each.name: each for each in identification.candidates}
    assert [*by_name] == ["base", "rank 1", "rank 8", "rank 16", "finetune"]
    assert (identification.best, identification.decided, identification.none_of_these) == (best, True, False)
    assert by_name[best].kld is not None
    assert by_name[best].kld < 1e-6
    assert min(each.kld or 0 for each in identification.candidates if each.name != best) > 0.002
    assert sum(each.posterior for each in identification.candidates) == pytest.approx(1)
    assert results.verdict.kind.value == verdict
    assert done.code == (0 if verdict == "same" else 3)
    assert json.loads(done.out)["endpoints"]["identification"]["best"] == best


@pytest.mark.slow
def test_text_alone_tells_what_is_served(models: Path, ask: Ask, tmp_path: Path) -> None:
    with serving(serves(models, "rank-8", top_logprobs=0)) as (server,):
        done = ask(server.reference, "--no-report")

    identification = found(tmp_path)
    assert (identification.best, identification.decided) == ("rank 8", True)
    assert identification.listed == 0
    assert {each.kld for each in identification.candidates} == {None}
    assert "answers as base + rank-8 delta: the other 4 candidates are excluded" in " ".join(done.out.split())
    exact = {name: log_likelihood(models / folder, tmp_path / "run") for name, folder in FOLDERS.items()}
    by_name = {each.name: each for each in identification.candidates}
    assert {name: by_name[name].log_likelihood for name in exact} == pytest.approx(exact, abs=0.01)
    ratio = math.log(by_name["rank 8"].posterior / max(by_name["base"].posterior, 1e-300))
    assert ratio == pytest.approx(min(exact["rank 8"] - exact["base"], 690), abs=2)
    best = by_name["rank 8"]
    rival = by_name[str(best.nearest)]
    assert best.nearest_log_e_value is not None
    # The mean of the rival's settings is its best one at most, and that one has a weight of 1/46 at least.
    gap = best.log_likelihood - rival.log_likelihood - best.nearest_log_e_value
    assert -1e-6 < gap < math.log(46) + 1e-6


FOLDERS = {"base": "base", "rank 8": "rank-8", "finetune": "finetune"}


def log_likelihood(folder: Path, run: Path) -> float:
    """Of the sampled answers of a run, by transformers in float64: the mean over the settings of the sampler."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64), byte_level()
    total = np.zeros(len(SETTINGS))
    for line in (run / "exchanges.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["key"].startswith("identify:") and "samplers" not in record["key"]:
            (choice,) = record["response"]["choices"]
            prompt = tokenizer(record["request"]["prompt"])["input_ids"]
            answer = tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
            if len(answer) != record["response"]["usage"]["completion_tokens"]:
                continue  # a byte that is no character: the tokens are not known
            targets = [*answer, *([END] if choice["finish_reason"] == "stop" else [])]
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 :]
            total += log_probabilities_by_setting(logits[: len(targets)], torch.tensor(targets)).sum(0)
    prior = np.where(np.arange(len(SETTINGS)) == PLAIN, 0.5, 0.5 / (len(SETTINGS) - 1))
    return float(np.log((prior * np.exp(total - total.max())).sum()) + total.max())


@pytest.mark.slow
@pytest.mark.parametrize("lists", [0, 20])
def test_another_finetune_is_none_of_these(models: Path, ask: Ask, tmp_path: Path, lists: int) -> None:
    with serving(serves(models, "third", top_logprobs=lists)) as (server,):
        done = ask(server.reference, "--no-report", "--check")

    identification = found(tmp_path)
    assert (identification.best, identification.decided, identification.none_of_these) == (None, True, True)
    assert "answers as none of these 5 models. The nearest is" in " ".join(done.out.split())
    assert done.code == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sampler"), [({"temperature": 0.7}, "temperature 0.7"), ({"top_k": 20}, "top-k 20")]
)
def test_a_secret_setting_of_the_sampler_is_found_and_the_model_all_the_same(
    models: Path, ask: Ask, tmp_path: Path, settings: dict[str, Any], sampler: str
) -> None:
    with serving(serves(models, "finetune", top_logprobs=0, refuses=("top_k",), **settings)) as (server,):
        ask(server.reference, "--no-report")

    identification = found(tmp_path)
    assert identification.best == "finetune"
    assert {each.name for each in identification.left} == {"finetune"}


@pytest.mark.slow
def test_lists_as_they_are_sampled_at_a_secret_temperature(models: Path, ask: Ask, tmp_path: Path) -> None:
    with serving(serves(models, "finetune", temperature=0.7, listed_at=0.7, refuses=("top_k",))) as (server,):
        ask(server.reference, "--no-report")

    by_name = {each.name: each for each in found(tmp_path).candidates}
    assert not by_name["finetune"].excluded
    assert by_name["finetune"].kld == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_text_of_a_model_that_is_not_listed_is_not_called_that_of_the_listed_one(
    models: Path, ask: Ask, tmp_path: Path
) -> None:
    liar = serves(models, "third", lists=SamplingServer.of(models / "finetune", models / "base").model)
    with serving(liar) as (server,):
        ask(server.reference, "--no-report")

    assert EndpointResults.load(tmp_path / "run").verdict.kind.value in ("different", "undecided")


@pytest.mark.slow
def test_two_endpoints_are_identified_and_compared(models: Path, ask: Ask, tmp_path: Path) -> None:
    with serving(serves(models, "base"), serves(models, "finetune")) as (a, b):
        ask(a.reference, b.reference, "--ranks", 8)

    endpoints = EndpointResults.load(tmp_path / "run").endpoints
    assert endpoints.verdict.kind.value == "different"
    assert {letter: each.best for letter, each in endpoints.identifications.items()} == {"A": "base", "B": "finetune"}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "What A serves" in page
    assert "What B serves" in page


def test_a_capped_run_resumes_and_is_analysed_again_offline(
    models: Path, ask: Ask, command: RunCommand, tmp_path: Path
) -> None:
    with serving(serves(models, "finetune")) as (server,):
        capped = ask(server.reference, "--max-requests", 16, "--ranks", 8, "--no-report")
        asked = len(server.fault.bodies)  # type: ignore[union-attr]
        ask(server.reference, "--ranks", 8)
        before = EndpointResults.load(tmp_path / "run").endpoints
        resumed = len(server.fault.bodies)  # type: ignore[union-attr]

    again = command("report", tmp_path / "run")

    assert asked <= 16
    assert "the cap of 16 requests is reached" in " ".join(capped.out.split())
    assert resumed == before.a.requests
    assert again.code == 0, again.err
    assert EndpointResults.load(tmp_path / "run").endpoints == before
    assert not (tmp_path / "run" / "identification.partial").exists()
    assert "What it serves" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_weights_are_added_to_a_run_without_them(models: Path, ask: Ask, command: RunCommand, tmp_path: Path) -> None:
    with serving(serves(models, "base"), serves(models, "finetune")) as (a, b):
        refs, plain = (a.reference, b.reference), ("-o", tmp_path / "run", "--seed", 5, "--completions", "--no-report")
        command("endpoints", *refs, *plain, "--max-requests", 32)
        before = (tmp_path / "run" / "exchanges.jsonl").read_text()
        done = ask(*refs, "--ranks", 8, "--no-report", "--max-requests", 50)
        without = command("endpoints", *refs, *plain)
        asked = [len(each.fault.bodies) for each in (a, b)]  # type: ignore[union-attr]

    found = EndpointResults.load(tmp_path / "run").endpoints
    assert done.code == 0, done.err
    assert {letter: each.best for letter, each in found.identifications.items()} == {"A": "base", "B": "finetune"}
    assert (tmp_path / "run" / "exchanges.jsonl").read_text().startswith(before)
    assert [found.a.requests, found.b.requests] == asked
    assert without.code == 1
    assert "weights: some in that run, none now" in " ".join(without.err.split())


def _in_the_cache(models: Path, cache: Path, *names: str) -> None:
    """The models as the Hub's client keeps them, as org/NAME."""
    for number, name in enumerate(names):
        home, commit = cache / f"models--org--{name}", f"{number:x}" * 40
        shutil.copytree(models / name, home / "snapshots" / commit)
        (home / "blobs").mkdir()
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(commit)


@pytest.mark.slow
def test_models_of_the_hub_are_analysed_again_as_long_as_its_cache_has_them(
    models: Path, command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    _in_the_cache(models, tmp_path / "cache", "base", "finetune")
    run = tmp_path / "run"
    words = ("--weights", "org/base", "org/finetune", "--ranks", 8, "-o", run, "--completions", "--no-report")
    with serving(serves(models, "finetune")) as (server,), monkeypatch.context() as offline:
        offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        done = command("endpoints", server.reference, *words)
    assert done.code == 0, done.err
    first = EndpointResults.load(run)

    (run / "results.json").write_text(json.dumps({**first.to_plain(), "endpoints": _without_identification(first)}))
    again = command("report", run)
    second = EndpointResults.load(run)
    shutil.rmtree(tmp_path / "cache" / "models--org--finetune")
    without = command("report", run)

    assert first.settings["weights"]["commits"] == {"base": "0" * 40, "finetune": "1" * 40}
    assert again.code == 0, again.err
    assert (second.endpoints, second.settings, second.notes) == (first.endpoints, first.settings, ())
    assert without.code == 0, without.err
    assert EndpointResults.load(run).endpoints == first.endpoints
    assert EndpointResults.load(run).settings == first.settings
    note = "Which model is served was not analysed again, and is as the run found it"
    assert note in " ".join(without.out.split())
    assert note in " ".join((run / "report.html").read_text(encoding="utf-8").split())


def _without_identification(results: EndpointResults) -> dict[str, Any]:
    return {**results.to_plain()["endpoints"], "identification": None}


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ({"before": "You are a pirate. "}, "template_differs", "a hidden prompt or another template"),
        ({"empty": True}, "unusable", "sampled answers can be scored"),
    ],
)
def test_what_cannot_be_identified_is_said(
    models: Path, ask: Ask, tmp_path: Path, fault: dict[str, Any], kind: str, said: str
) -> None:
    with serving(serves(models, "finetune", **fault)) as (server,):
        done = ask(server.reference, "--ranks", 8)

    results = EndpointResults.load(tmp_path / "run")
    assert results.endpoints.identification is None
    assert results.verdict.kind.value == kind
    assert said in " ".join(done.out.split())


def test_listed_tokens_of_another_tokenizer_are_an_error(models: Path, ask: Ask) -> None:
    with serving(FakeEndpoint(counts_tokens=False)) as (server,):
        done = ask(server.reference, "--ranks", 8)

    assert done.code == 1
    assert "tokens that it lists for an answer are no tokens of it" in " ".join(done.err.split())


def test_another_tokenizer_is_an_error(models: Path, ask: Ask) -> None:
    with serving(serves(models, "finetune", count_more=0.1)) as (server,):
        done = ask(server.reference, "--ranks", 8)

    assert done.code == 1
    assert "endpoint-tokenizer-differs" in done.err


def test_the_tokens_that_it_takes_are_said_before_anything_is_sent(models: Path, ask: Ask, tmp_path: Path) -> None:
    done = ask("tiny@http://127.0.0.1:9/v1", "--dry-run", "--ranks", "8", "--yardstick", "q8_0")
    prices = ("--price-in", 1, "--price-out", 2)
    near = ask("tiny@http://127.0.0.1:9/v1", "--dry-run", "--yardstick", "q8_0", "--tolerance", 0.1, *prices)

    assert done.code == 0
    letters = mean(len(fresh_prompt(0, "plan", i, EndpointApi.COMPLETIONS).encode()) for i in range(64))
    assert f"A fresh prompt has about {round(letters) + 1} tokens by the finetune's tokenizer" in done.out
    assert f"with the probe, 1,040 requests, about {1040 * (round(letters) + 1) + 121 + 1024 * 48:,} tokens" in done.out
    assert "cost unknown without --price-in" in done.out
    assert "a cost of " in near.out
    assert "in the unit of your prices" in " ".join(near.out.split())
    assert "will probably not be told apart" in near.out
    assert "rank 8: about" in done.out
    assert "q8_0: about" in done.out
    assert "Nothing was sent" in done.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "code", "slug"),
    [
        (("--adapter", "x"), 2, "only-with-weights"),
        (("--yardstick", "q8_0"), 2, "only-with-weights"),
        ((), 2, "endpoint-alone"),
    ],
)
def test_options_about_weights_need_them(command: RunCommand, words: tuple[str, ...], code: int, slug: str) -> None:
    done = command("endpoints", "tiny@http://127.0.0.1:9/v1", *words)

    assert done.code == code
    assert slug in done.err


def test_weights_that_are_no_pair_and_a_folder_without_an_adapter(models: Path, ask: Ask, tmp_path: Path) -> None:
    alone = ask("tiny@http://127.0.0.1:9/v1", finetune="nothing")
    no_adapter = ask("tiny@http://127.0.0.1:9/v1", "--adapter", models / "base")

    assert (alone.code, no_adapter.code) == (1, 1)
    assert "no-such-checkpoint" in alone.err
    assert "adapter-not-found" in no_adapter.err
    assert not (tmp_path / "run").exists()
