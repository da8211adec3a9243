"""The model card of an extracted adapter: about the weights, then about behaviour once `outputs` has measured it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import write

import deltarank
from commands import RunCommand
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.errors import JobError, OutputError
from deltarank.jobs.extract import ExtractedAdapter
from deltarank.results import CandidateKind, figure, noise_shares, percent
from refusals import refused
from tiny_architectures import architecture

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
RANK = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base and finetune in bfloat16; adapter, extracted at rank 6; text.txt."""
    home = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = architecture("llama", **SIZES, **TOKENS, max_position_embeddings=256)().bfloat16()
    for name in ("base", "finetune"):
        if name == "finetune":
            with torch.no_grad():
                for weight in (w for w in model.parameters() if w.ndim == 2 and len(w) < 259):
                    directions = [torch.randn(side, 6) for side in weight.shape]
                    weight.add_((0.02 * directions[0] @ directions[1].T).bfloat16())
        model.save_pretrained(home / name)
        tokenizer(Recipe()).save_pretrained(home / name)
    deltarank.extract(home / "base", home / "finetune", rank=RANK, output=home / "adapter")
    (home / "text.txt").write_text("the rain fell on the stones, one by one, until the light was gone.\n")
    return home


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_without_outputs_the_card_is_about_the_weights_and_says_how_to_measure_the_text(models: Path) -> None:
    adapter, card = ExtractedAdapter.load(models / "adapter"), card_of(models / "adapter")

    assert f"It {adapter.sentence}." in card
    assert "of the change in the weights; " in adapter.sentence
    assert "behaviour" not in card
    assert "docs/how-to/extract-verify-serve.md#serve-it)." in card
    command = f"`deltarank outputs {models / 'base'} {models / 'finetune'} --adapter this-folder --update-cards`"
    assert f"What they mean for the text was not measured: use {command}." in card


def test_the_card_states_the_rounding_that_compare_reports(tmp_path: Path) -> None:
    """Of a LoRA of rank 2 that was merged in bfloat16, and is little larger than the rounding."""
    generator = torch.Generator().manual_seed(1)
    base = {
        f"model.layers.0.mlp.{name}_proj.weight": torch.randn(320, 256, generator=generator) for name in ("up", "gate")
    }
    base = {name: (0.02 * weight).bfloat16() for name, weight in base.items()}
    factors = [torch.randn(side, 2, generator=generator) for side in (320, 256)]
    tuned = {name: (w.float() + 3e-5 * factors[0] @ factors[1].T).bfloat16() for name, w in base.items()}
    for name, weights in (("base", base), ("finetune", tuned)):
        write(tmp_path / name, weights)
    adapter = deltarank.extract(tmp_path / "base", tmp_path / "finetune", rank=RANK, output=tmp_path / "adapter")
    compared = deltarank.compare(tmp_path / "base", tmp_path / "finetune", ranks=RANK)
    shares = noise_shares(compared.matrices, RANK)

    assert shares.rounding_lost > 0.5
    assert shares.is_below_edge
    assert adapter.noise_sentence == (
        "All of what is truncated is small enough to be storage rounding (below the noise edge)."
    )
    assert adapter.noise_sentence in card_of(tmp_path / "adapter")
    for mine, theirs in zip(adapter.matrices, compared.matrices, strict=True):
        assert (mine.noise_edge, mine.rounding_floor) == pytest.approx((theirs.noise_edge, theirs.rounding_floor))
        assert mine.signal_share == pytest.approx(theirs.signal_share, abs=1e-5)


def test_outputs_put_behaviour_first_and_keep_what_was_written_by_hand(
    models: Path, tmp_path: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, run = tmp_path / "adapter", tmp_path / "run"
    shutil.copytree(models / "adapter", adapter)
    (adapter / "README.md").write_text(card_of(adapter) + "\nWritten by hand.\n")
    options = ["--ranks", RANK, "--samples", 0, "--text", models / "text.txt", "--yardstick", "q8_0", "--no-report"]
    words = ["outputs", models / "base", models / "finetune", "-o", run, *options, "--adapter", adapter]
    _stop_printing(monkeypatch)
    with pytest.raises(BlockingIOError):
        command(*words, "--update-cards")
    before_printing = card_of(adapter)
    monkeypatch.undo()
    first = command(*words, "--update-cards")
    card, again = card_of(adapter), command(*words, "--update-cards")

    assert (first.code, again.code) == (0, 0), first.err
    assert f"wrote {adapter / 'README.md'}" in first.err
    outputs = deltarank.open_results(run).outputs
    assert outputs is not None
    measured = next(each for each in outputs.candidates if each.kind is CandidateKind.ADAPTER).logits[0]
    assert measured.kept is not None
    lines = card.splitlines()
    headline = lines[lines.index("<!-- deltarank: results -->") + 1]
    assert headline.startswith(f"**It keeps {percent(measured.kept.value)} of the finetune's behaviour")
    assert f" on text.txt: {figure(measured.kld.mean)} nats per token from the finetune, base " in headline
    assert ", q8_0 " in headline
    assert card.index("behaviour") < card.index("It keeps ", card.index("Behaviour kept is"))
    assert card.endswith("Written by hand.\n")
    assert "What they mean for the text was not measured" not in card
    assert card == card_of(adapter) == before_printing
    stored = json.loads((adapter / "deltarank.json").read_text())["behaviour"]
    assert stored["kld"] == measured.kld.mean
    assert ExtractedAdapter.load(adapter).behaviour is not None
    _refuses_what_was_not_measured(models, adapter, run)


def _stop_printing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the reader of the results has ended."""

    def fail(text: str) -> None:
        raise BlockingIOError

    monkeypatch.setattr("deltarank.cli.run_command.out", fail)


def _refuses_what_was_not_measured(models: Path, adapter: Path, run: Path) -> None:
    results = deltarank.open_results(run)
    other = deltarank.extract(models / "base", models / "finetune", rank=2, output=adapter.parent / "other")
    with refused("adapter-not-measured", JobError):
        deltarank.update_card(other.folder, results)
    swapped = deltarank.extract(models / "finetune", models / "base", rank=RANK, output=adapter.parent / "swapped")
    with refused("adapter-not-measured", JobError):
        deltarank.update_card(swapped.folder, results)
    (adapter / "README.md").write_text("# Mine\n")
    with refused("card-changed", OutputError):
        deltarank.update_card(adapter, results)
    (adapter / "README.md").unlink()
    assert "**It keeps " in card_of(deltarank.update_card(adapter, results).folder)


def test_cards_need_an_adapter_that_extract_wrote(models: Path, tmp_path: Path, command: RunCommand) -> None:
    words = ["outputs", models / "base", models / "finetune", "-o", tmp_path / "run", "--update-cards"]

    assert "no-adapter" in command(*words).err
    bare = shutil.copytree(models / "adapter", tmp_path / "bare", ignore=shutil.ignore_patterns("deltarank.json"))
    assert "results-unreadable" in command(*words, "--adapter", bare).err
    assert not (tmp_path / "run").exists()


def test_the_tied_embedding_is_named_if_it_is_the_limit(tmp_path: Path) -> None:
    """On the card, and to what it adds up: a portable adapter carries no embedding."""
    generator = torch.Generator().manual_seed(2)
    base = {
        f"model.layers.{layer}.{name}.weight": 0.02 * torch.randn(32, 32, generator=generator)
        for layer in range(2)
        for name in ("mlp.up_proj", "mlp.gate_proj")
    }
    base["model.embed_tokens.weight"] = 0.02 * torch.randn(64, 32, generator=generator)
    tuned = {name: w + 0.01 * torch.randn(w.shape, generator=generator) for name, w in base.items()}
    tuned["model.embed_tokens.weight"] += 0.1
    for name, weights in (("base", base), ("finetune", tuned)):
        config = write(tmp_path / name, weights) / "config.json"
        plain = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
        config.write_text(json.dumps(json.loads(config.read_text()) | plain))
    adapter = deltarank.extract(tmp_path / "base", tmp_path / "finetune", rank=16, output=tmp_path / "adapter")
    (left_out,) = adapter.budget.tensors

    assert left_out.share is not None
    assert left_out.share > adapter.budget.truncated
    limit = adapter.budget.limit()
    assert limit == (
        "What limits every rank is model.embed_tokens (which is also the output head). "
        f"It holds {percent(left_out.share)} of the whole change, and this adapter leaves it out. "
        "Freezing it in training avoids that."
    )
    assert limit in card_of(tmp_path / "adapter")
    assert replace(adapter.budget, truncated=left_out.share).limit() == ""
    ninths = tuple(replace(left_out, share=left_out.share / 9) for _ in range(9))
    assert replace(adapter.budget, tensors=ninths).limit() == ""  # no few tensors are the limit
    compared = deltarank.compare(tmp_path / "base", tmp_path / "finetune", ranks=16)
    assert limit.replace("this adapter", "a LoRA on the measured matrices") == compared.verdict.opening[2]


def test_the_card_names_the_twelve_tensors_that_it_leaves_out_most_of(tmp_path: Path) -> None:
    """And counts the others, so that a card is no list of norms."""
    generator = torch.Generator().manual_seed(3)
    base = {f"model.layers.{layer}.input_layernorm.weight": torch.ones(16) for layer in range(14)}
    base["model.layers.0.mlp.up_proj.weight"] = torch.zeros(16, 16)
    tuned = {name: w + 0.1 * torch.randn(w.shape, generator=generator) for name, w in base.items()}
    for name, weights in (("base", base), ("finetune", tuned)):
        write(tmp_path / name, weights)

    deltarank.extract(tmp_path / "base", tmp_path / "finetune", rank=2, output=tmp_path / "adapter", server="llama.cpp")

    card = card_of(tmp_path / "adapter")
    assert card.count("| `model.layers.") == 12
    assert "`deltarank.json` lists 2 more tensors." in card
