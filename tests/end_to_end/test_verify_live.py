"""`deltarank verify --live`: a server over transformers and PEFT that applies the adapter, does not, or has another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import deltarank
import peft_adapters as made
import transformers_endpoint
from commands import Finished, RunCommand
from deltarank.jobs.verify import live_models
from deltarank.jobs.verify.live_verdict import Asked, ListedTokens, PromptCounts, judge_lists
from deltarank.openai_api import EndpointRef
from deltarank.runtime import ProgressListener
from fake_endpoint import FakeEndpoint, Fault, Handler, serving
from some_tokenizers import byte_level

KEY = "sk-secret-0123456789abcdef"
ALL = [f"{word}_proj" for word in ("q", "k", "v", "o", "gate", "up", "down")]
SHARPER = 300.0
"""Random models predict all tokens alike. With this much larger rows of the head, letters and digits are predicted."""

Verify = Callable[..., Finished]


def tiny_llama(layers: int = 2) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=261, max_position_embeddings=1024, **sizes))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, and the adapters mine and other on it; faint, which changes next to nothing; tuned, which holds mine."""
    home = tmp_path_factory.mktemp("live")
    base = made.write_base(tiny_llama, home / "base")
    weights = made.tensors(base)
    tokenizer = byte_level()
    letters = [number for piece, number in tokenizer.get_vocab().items() if piece.isascii() and piece.isalnum()]
    weights["lm_head.weight"][letters] *= SHARPER
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(base)
    for seed, name in ((1, "mine"), (2, "other")):
        made.train(base, home / name, seed=seed, r=4, lora_alpha=32, target_modules=ALL, init_lora_weights=False)
    made.train(base, home / "faint", steps=1, r=4, lora_alpha=1e-4, target_modules=ALL)
    made.merge(base, home / "mine", home / "tuned")
    return home


def serves(models: Path, adapter: str | None, *, lists: bool = True) -> Fault:
    return transformers_endpoint.serves(models / "base", None if adapter is None else models / adapter, lists=lists)


def refusing(is_too_long: Callable[[dict[str, Any]], bool], answer: Fault) -> Fault:
    """A server that refuses some requests, as llama.cpp does where a prompt does not fit into its context."""

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        if not is_too_long(body):
            return answer(handler, body)
        handler.send(400, {"error": {"message": "the request exceeds the available context size"}})
        return True

    return fault


@pytest.fixture
def verify(models: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> Verify:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(reference: str, *words: object, adapter: str = "mine", base: Path | None = None) -> Finished:
        checkpoints = (base or models / "base", models / "tuned", models / adapter)
        return command("verify", *checkpoints, "--live", reference, *words)

    return run


def live(done: Finished) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.out)["live"]
    return found


@pytest.mark.parametrize(("served", "verdict"), [("mine", "adapter"), (None, "base"), ("other", "neither")])
@pytest.mark.parametrize("lists", [True, False])
def test_what_the_server_applies(models: Path, verify: Verify, served: str | None, verdict: str, lists: bool) -> None:
    with serving(FakeEndpoint(fault=serves(models, served, lists=lists))) as (server,):
        done = verify(server.reference, "--json", "--check")

    found = live(done)
    assert found["verdict"] == verdict, found
    assert done.code == (0 if verdict == "adapter" else 3)
    assert (found["model"], found["url"]) == ("tiny", server.url)
    assert len(server.requests) <= 20
    assert all(body["max_tokens"] == 1 for body in server.requests)
    if lists:
        distances = {"base": found["kld_base"], "adapter": found["kld_adapter"]}
        assert {name for name, value in distances.items() if value < 1e-6} == {verdict} - {"neither"}
        assert found["kld_apart"] > 0.002
        if verdict != "neither":
            assert set(found["text"].values()) == {0, found["text"][verdict]}
            assert "Its text agrees." in found["sentences"][-1]
    else:
        assert found["kld_base"] is None
        assert "lists no log-probabilities" in " ".join(found["sentences"])


@pytest.mark.parametrize(("served", "verdict"), [("flat", "adapter"), (None, "base")])
def test_prompts_are_chosen_after_which_lists_show_enough(
    command: RunCommand, tmp_path: Path, served: str | None, verdict: str
) -> None:
    """The adapter changes most where the base's predictions are flat, and a list of 20 shows a third of them."""
    models = flat_after_some_letters(tmp_path)
    with serving(FakeEndpoint(fault=serves(models, served))) as (server,):
        found = live(
            command(
                "verify", *(models / each for each in ("base", "tuned", "flat")), "--live", server.reference, "--json"
            )
        )

    assert found["verdict"] == verdict, found


def flat_after_some_letters(home: Path) -> Path:
    """A base that predicts by the last token alone, and the adapter `flat`, which `tuned` holds.

    After the letters a to m, all letters and digits are alike; after others, the base predicts a few of them. The first
    two components of the embedding tell which, and the adapter of down_proj adds to the other ones: much after a to m.
    """
    base = made.write_base(lambda: tiny_llama(layers=1), home / "base")
    tokenizer = byte_level()
    pieces = tokenizer.get_vocab()
    shown = [number for piece, number in pieces.items() if piece.isascii() and piece.isalnum()]
    weights = {
        name: torch.zeros_like(each) if each.dim() > 1 else torch.ones_like(each)
        for name, each in made.tensors(base).items()
    }
    draws = torch.Generator().manual_seed(0)
    kind = torch.tensor(
        [0 if "a" <= piece <= "m" else 1 for piece, _ in sorted(pieces.items(), key=lambda each: each[1])]
    )
    weights["model.embed_tokens.weight"] += 0.008 * torch.randn(261, 32, generator=draws)  # no two lists are the same
    weights["model.embed_tokens.weight"][torch.arange(len(kind)), kind] = 1.0
    for name in ("gate_proj", "up_proj"):
        weights[f"model.layers.0.mlp.{name}.weight"][:2, :2] = torch.eye(2)
    weights["lm_head.weight"][:, :2] = -3.0
    weights["lm_head.weight"][shown] = torch.randn(len(shown), 32, generator=draws)
    weights["lm_head.weight"][shown, 0] = 0.0
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(base)
    made.train(base, home / "flat", steps=1, r=2, lora_alpha=2, target_modules=["down_proj"])
    factors = load_file(home / "flat" / "adapter_model.safetensors")
    for name, factor in factors.items():
        factor.zero_()
        if "lora_A" in name:
            factor[:, :2] = torch.eye(2)
        else:
            factor[2:] = torch.randn(30, 2, generator=draws) * torch.tensor([0.02, 0.002])
    save_file(factors, home / "flat" / "adapter_model.safetensors", metadata={"format": "pt"})
    made.merge(base, home / "flat", home / "tuned")
    return home


@pytest.mark.parametrize("lists", [True, False])
def test_prompts_that_the_server_refuses_are_left_out(models: Path, verify: Verify, lists: bool) -> None:
    refused = []

    def is_too_long(body: dict[str, Any]) -> bool:
        if len(server.requests) not in (2, 4):
            return False
        refused.append(body["prompt"])
        return True

    with serving(FakeEndpoint(fault=refusing(is_too_long, serves(models, "mine", lists=lists)))) as (server,):
        found = live(verify(server.reference, "--json"))

    assert found["verdict"] == "adapter", found
    assert len(refused) == 2


@pytest.mark.parametrize(("lists", "context"), [(True, 60), (False, 150)])
def test_prompts_fit_into_the_context_of_the_server(models: Path, verify: Verify, lists: bool, context: int) -> None:
    """A token is a byte: the prompts have 100 to 400."""
    tokenizer = byte_level()

    def is_too_long(body: dict[str, Any]) -> bool:
        return len(tokenizer(body["prompt"])["input_ids"]) + body["max_tokens"] > context

    with serving(FakeEndpoint(fault=refusing(is_too_long, serves(models, "mine", lists=lists)))) as (server,):
        found = live(verify(server.reference, "--json"))

    assert found["verdict"] == "adapter", found
    assert found["prompts"] == (5 if lists else found["text"]["adapter"])
    assert "The server refused longer prompts" in " ".join(found["sentences"])
    assert len(server.requests) <= 20


def test_prompts_fit_into_the_context_of_the_base(models: Path, verify: Verify) -> None:
    home = models.parent / "small-context"
    shutil.copytree(models, home)
    config = home / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 80}))
    with serving(FakeEndpoint(fault=serves(models, "mine"))) as (server,):
        found = live(verify(server.reference, "--json", base=home / "base"))

    tokenizer = byte_level()
    longest = [len(tokenizer(body["prompt"])["input_ids"]) for body in server.requests]
    assert found["verdict"] == "adapter", found
    assert max(longest[1:]) < 80 < longest[0]


@pytest.mark.parametrize(("listed", "written"), [("mine", None), (None, "other")])
def test_lists_of_another_model_than_the_text_decide_nothing(
    models: Path, verify: Verify, listed: str | None, written: str | None
) -> None:
    lists, text = serves(models, listed), serves(models, written)

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        return (lists if body.get("logprobs") else text)(handler, body)

    with serving(FakeEndpoint(fault=fault)) as (server,):
        done = verify(server.reference, "--json", "--check")

    found = live(done)
    expected = "adapter" if listed else "base"
    assert (found["verdict"], done.code) == ("undecided", 3), found
    assert found[f"kld_{expected}"] < 1e-6
    assert 2 * found["text"][expected] <= sum(found["text"].values())
    assert "its text does not agree with them" in found["sentences"][0]


def test_the_verdict_comes_first_in_the_output(models: Path, verify: Verify) -> None:
    with serving(FakeEndpoint(fault=serves(models, None))) as (server,):
        done = verify(server.reference)

    assert done.code == 0
    assert done.out.startswith("The server does not apply the adapter: it answers as the base alone.")
    assert "mine keeps" in " ".join(done.out.split())


class Told(ProgressListener):
    """The sentences of a job, and the tensors that it begins to measure."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def noted(self, sentence: str) -> None:
        self.events.append(sentence)

    def began(self, name: str) -> None:
        self.events.append(name)


def test_the_verdict_is_told_before_the_weights_are_measured(models: Path) -> None:
    told = Told()
    with serving(FakeEndpoint(fault=serves(models, "mine"))) as (server,):
        paths = (models / name for name in ("base", "tuned", "mine"))
        found = deltarank.verify(*paths, live=server.reference, progress=told)

    first, *others = told.events
    assert found.live is not None
    assert first == f"{found.live.sentences[0]} The weights are measured next."
    assert {tensor.name for tensor in found.tensors} <= set(others)


@pytest.mark.parametrize(("served", "verdict"), [("mine", "adapter"), (None, "base")])
def test_a_quantised_base_is_told_and_within_a_wider_tolerance_it_counts(
    models: Path, verify: Verify, served: str | None, verdict: str
) -> None:
    """The rows of the base's matrices are rounded to 15 values each, about as much as quantisation in 4 bits does."""
    with serving(FakeEndpoint(fault=serves(_quantised(models), served))) as (server,):
        strict = live(verify(server.reference, "--json"))
        wide = live(verify(server.reference, "--json", "--tolerance", 0.5))

    near, far = (strict[f"kld_{name}"] for name in (("adapter", "base") if served else ("base", "adapter")))
    assert strict["verdict"] == "neither"
    assert 0.002 < near < far / 10
    assert strict["sentences"][0].startswith(
        f"The server answers nearly as {'base + adapter' if served else 'the base'}"
    )
    assert strict["strength"] == pytest.approx(1 if served else 0, abs=0.3)
    assert (wide["verdict"], wide["tolerance"]) == (verdict, 0.5)


@pytest.mark.parametrize(("share", "model"), [(0.6, "base + adapter"), (0.4, "the base alone")])
def test_within_a_wide_tolerance_a_part_of_the_adapter_is_told(share: float, model: str) -> None:
    """The server is nearer to one of both than the tolerance, and shows a part of the change."""
    listed = ListedTokens((share * 0.5) ** 2, ((1 - share) * 0.5) ** 2, 0.25, 0.9, along=share, length=1.0)
    asked = Asked(EndpointRef("tiny", "http://127.0.0.1:9/v1"), PromptCounts(9, 9), 0.05)

    headline = judge_lists(asked, [listed] * 5).sentences[0]

    share_shown = f"{100 * share:.0f} %"
    assert headline.startswith(f"The server answers as {model} within the tolerance, but shows {share_shown}")


def _quantised(models: Path) -> Path:
    home = models.parent / "quantised"
    if not home.exists():
        shutil.copytree(models, home)
        weights = made.tensors(home / "base")
        for name, weight in weights.items():
            if weight.dim() == 2:
                step = weight.abs().amax(dim=1, keepdim=True) / 7
                weights[name] = (weight / step).round() * step
        save_file(weights, home / "base" / "model.safetensors", metadata={"format": "pt"})
    return home


@pytest.mark.parametrize("lists", [True, False])
def test_empty_answers_say_nothing(models: Path, verify: Verify, lists: bool) -> None:
    answer = serves(models, "mine", lists=lists)

    def empty(handler: Handler, body: dict[str, Any]) -> bool:
        if body.get("logprobs"):
            return answer(handler, body)
        handler.send(200, {"choices": [{"text": "", "finish_reason": "stop"}]})
        return True

    with serving(FakeEndpoint(fault=empty)) as (server,):
        found = live(verify(server.reference, "--json"))

    assert found["verdict"] == ("adapter" if lists else "undecided"), found
    assert "8 of 8 greedy answers of the server are empty" in " ".join(found["sentences"])


def test_half_of_the_strength_is_told(models: Path, verify: Verify) -> None:
    home = models.parent / "half"
    shutil.copytree(models, home)
    settings = home / "mine" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "lora_alpha": 16}))
    with serving(FakeEndpoint(fault=serves(home, "mine"))) as (server,):
        found = live(verify(server.reference, "--json"))

    assert found["verdict"] == "neither"
    assert 0.25 < found["strength"] < 0.75


def test_lists_that_are_made_up_are_not_used(models: Path, verify: Verify) -> None:
    """The greedy tokens are those of the adapter, and every list is that of the first prompt."""
    answer, first = serves(models, "mine"), serves(models, None)
    prompts: list[str] = []

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        prompts.append(body["prompt"])
        return first(handler, {**body, "prompt": prompts[0]}) if body.get("logprobs") else answer(handler, body)

    with serving(FakeEndpoint(fault=fault)) as (server,):
        found = live(verify(server.reference, "--json"))

    assert found["verdict"] == "adapter", found
    assert found["kld_base"] is None
    assert "they are made up, and not used" in " ".join(found["sentences"])
    assert len(server.requests) <= 20


def test_a_base_that_does_not_fit_is_streamed_with_the_same_figures(
    models: Path, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompts are fresh, so the figures are those of equal models: next to 0, and far from the base."""
    monkeypatch.setattr("deltarank.jobs.verify.live_models.available_memory", lambda _: 1000)
    streamed: list[object] = []
    real = live_models.stream_model
    monkeypatch.setattr(live_models, "stream_model", lambda *args, **named: streamed.append(1) or real(*args, **named))
    with serving(FakeEndpoint(fault=serves(models, "mine"))) as (server,):
        found = live(verify(server.reference, "--json"))

    assert len(streamed) == 2
    assert found["verdict"] == "adapter", found
    assert found["kld_adapter"] < 1e-6
    assert found["kld_base"] > 0.002


def test_an_adapter_that_changes_too_little_is_undecided(models: Path, verify: Verify) -> None:
    with serving(FakeEndpoint(fault=serves(models, "faint"))) as (server,):
        found = live(verify(server.reference, "--json", adapter="faint"))

    assert found["verdict"] == "undecided"
    assert found["kld_apart"] < 0.002
    assert found["sentences"][0].startswith("It cannot be decided")


def test_a_server_that_prepends_a_text_is_neither_and_its_count_is_told(models: Path, verify: Verify) -> None:
    answer = serves(models, "mine")

    def with_system_prompt(handler: Handler, body: dict[str, Any]) -> bool:
        return answer(handler, {**body, "prompt": "You are a pirate. " + body["prompt"]})

    with serving(FakeEndpoint(fault=with_system_prompt)) as (server,):
        found = live(verify(server.reference, "--json"))

    assert found["verdict"] == "neither"
    assert "it adds text, or has another tokenizer" in found["sentences"][-1]


def test_a_server_without_the_bos_token_is_judged_without_it(models: Path, verify: Verify) -> None:
    with serving(FakeEndpoint(fault=serves(_without_bos(models), "mine"))) as (server,):
        found = live(verify(server.reference, "--json"))

    assert found["verdict"] == "adapter", found


def _without_bos(models: Path) -> Path:
    """The same models, with a tokenizer that puts nothing in front."""
    home = models.parent / "without-bos"
    shutil.copytree(models, home)
    tokenizer = home / "base" / "tokenizer.json"
    plain = json.loads(tokenizer.read_text())
    plain["post_processor"] = None
    tokenizer.write_text(json.dumps(plain))
    return home


def test_tokens_that_are_not_the_base_s_are_an_error(models: Path, verify: Verify) -> None:
    with serving(FakeEndpoint()) as (server,):
        done = verify(server.reference)

    assert done.code == 1
    assert "live-tokenizer-differs" in done.err
    assert "of their probability is on texts that no token of the base has" in " ".join(done.err.split())


def test_a_wrong_key_is_not_repeated(verify: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(FakeEndpoint(key="another")) as (server,):
        done = verify(server.reference, "--key", "MY_KEY")

    assert done.code == 1
    assert "endpoint-key-refused" in done.err
    assert "name it with --key." in " ".join(done.err.split())
    assert KEY not in done.out + done.err


def test_an_unknown_model_and_a_server_that_does_not_run(verify: Verify) -> None:
    with serving(FakeEndpoint()) as (server,):
        unknown = verify(f"nobody@{server.url}")
    closed = verify(server.reference)

    assert "does not answer for model 'nobody'" in " ".join(unknown.err.split())
    assert "endpoint-not-found" in unknown.err
    assert "endpoint-unreachable" in closed.err
    assert (unknown.code, closed.code) == (1, 1)


def test_merged_and_live_are_two_questions(verify: Verify) -> None:
    done = verify("tiny@http://127.0.0.1:9/v1", "--merged")

    assert done.code == 2
    assert "merged-and-live" in done.err


@pytest.mark.parametrize("words", [("--key", "HOST_KEY"), ("--tolerance", 0.01)])
def test_a_key_and_a_tolerance_need_a_server(models: Path, command: RunCommand, words: tuple[object, ...]) -> None:
    done = command("verify", models / "base", models / "tuned", models / "mine", *words)

    assert done.code == 2
    assert "option-without-live" in done.err


@pytest.mark.parametrize("tolerance", [0, 1.5, "nan"])
def test_a_tolerance_is_a_small_number(verify: Verify, tolerance: object) -> None:
    done = verify("tiny@http://127.0.0.1:9/v1", "--tolerance", tolerance)

    assert done.code == 2
    assert "bad-number" in done.err
