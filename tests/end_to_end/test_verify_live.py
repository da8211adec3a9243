"""`deltarank verify --live`: a server over transformers and PEFT that applies the adapter, does not, or has another."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import peft_adapters as made
from commands import Finished, RunCommand
from fake_endpoint import FakeEndpoint, Fault, Handler, serving
from some_tokenizers import byte_level

KEY = "sk-secret-0123456789abcdef"
ALL = [f"{word}_proj" for word in ("q", "k", "v", "o", "gate", "up", "down")]
SHARPER = 300.0
"""Random models predict all tokens alike. With this much larger rows of the head, letters and digits are predicted."""

Verify = Callable[..., Finished]


def tiny_llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
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
    """Answers /completions as transformers and PEFT predict."""
    tokenizer: Any = AutoTokenizer.from_pretrained(models / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.float32).eval()
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, about names of transformers
            model = PeftModel.from_pretrained(model, models / adapter).eval()

    def answer(handler: Handler, body: dict[str, Any]) -> bool:
        ids = tokenizer(body["prompt"])["input_ids"]
        with torch.inference_mode():
            found = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
        best = [int(each) for each in found.argsort(descending=True)[: int(body.get("logprobs") or 1)]]
        content = [_entry(tokenizer, each, float(found[each])) for each in best]
        choice: dict[str, Any] = {"index": 0, "text": tokenizer.decode([best[0]]), "finish_reason": "length"}
        if lists and body.get("logprobs"):
            choice["logprobs"] = {"content": [{**content[0], "top_logprobs": content}]}
        handler.send(200, {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}})
        return True

    return answer


def _entry(tokenizer: Any, number: int, value: float) -> dict[str, Any]:
    piece = tokenizer.convert_ids_to_tokens(number)
    data = [_LETTERS[each] for each in piece] if all(each in _LETTERS for each in piece) else list(piece.encode())
    return {"token": tokenizer.decode([number]), "logprob": value, "bytes": data}


def _bytes_of_letters() -> dict[str, int]:
    """The byte for each letter of a byte-level tokenizer, as the library `tokenizers` writes it."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = map(chr, [*range(0xD800), *range(0x10000, 0x110000, 0x10000)])
    return {
        letter: byte
        for text in texts
        for letter, byte in zip(level.pre_tokenize_str(text)[0][0], text.encode(), strict=True)
    }


_LETTERS = _bytes_of_letters()


@pytest.fixture
def verify(models: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> Verify:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(reference: str, *words: object, adapter: str = "mine") -> Finished:
        return command("verify", models / "base", models / "tuned", models / adapter, "--live", reference, *words)

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
    else:
        assert found["kld_base"] is None
        assert "lists no log-probabilities" in " ".join(found["sentences"])


def test_the_verdict_comes_first_in_the_output(models: Path, verify: Verify) -> None:
    with serving(FakeEndpoint(fault=serves(models, None))) as (server,):
        done = verify(server.reference)

    assert done.code == 0
    assert done.out.startswith("The server does not apply the adapter: it answers as the base alone.")
    assert "mine keeps" in " ".join(done.out.split())


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


def test_a_key_needs_a_server(models: Path, command: RunCommand) -> None:
    done = command("verify", models / "base", models / "tuned", models / "mine", "--key", "HOST_KEY")

    assert done.code == 2
    assert "key-without-live" in done.err
