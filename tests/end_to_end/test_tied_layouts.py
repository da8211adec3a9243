"""A vocabulary that is one tensor in the loaded model is counted once, however the files store it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from deltarank import compare, extract, verify
from deltarank.results import Outcome
from tiny_architectures import DENSE, logits, write_pair

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LAYOUTS = ("embedding", "both", "head")


def stored(folder: Path, target: Path, layout: str, *, flag: bool | None = True, head_change: float = 0.0) -> Path:
    """A copy that stores the vocabulary in this layout, with this flag in its configuration (None: no flag)."""
    tensors = load_file(folder / "model.safetensors")
    if layout != "embedding":
        tensors[HEAD] = tensors[EMBEDDING] + head_change * torch.ones_like(tensors[EMBEDDING])
    if layout == "head":
        del tensors[EMBEDDING]
    target.mkdir(parents=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config |= {} if flag is None else {"tie_word_embeddings": flag}
    if flag is None:
        config.pop("tie_word_embeddings", None)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(DENSE["tied llama"], tmp_path_factory.mktemp("tied"))


def test_every_layout_gives_the_same_figures_and_the_same_adapter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    expected = logits(pair[1])
    seen = set()
    for base_layout in LAYOUTS:
        base = stored(pair[0], tmp_path / f"base-{base_layout}", base_layout)
        for layout in LAYOUTS:
            finetune = stored(pair[1], tmp_path / f"{base_layout}-{layout}", layout)
            results = compare(base, finetune, ranks=(8,))
            [vocabulary] = [skip for skip in results.skipped if skip.outcome is Outcome.EMBEDDING]
            adapter = tmp_path / f"adapter-{base_layout}-{layout}"
            extract(base, finetune, output=adapter, rank=32, server="peft")
            digest = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
            seen.add((results.totals.whole.energy, vocabulary.energy, vocabulary.share, digest))
            assert not results.unpaired.matrices
            assert (logits(base, adapter) - expected).abs().max() < 1e-5
            read = verify(base, finetune, adapter)
            assert read.whole.share_lost < 1e-6
            assert not read.unused
            of_adapter = {skip.name: skip.energy for skip in compare(base, adapter, ranks=(8,)).skipped}
            assert of_adapter[EMBEDDING] == pytest.approx(vocabulary.energy, rel=1e-6)
    assert len(seen) == 1


@pytest.mark.parametrize("flag", [True, False, None])
@pytest.mark.parametrize("head_change", [0.0, 0.25])
def test_tied_is_what_transformers_loads_as_one_tensor(
    pair: tuple[Path, Path], tmp_path: Path, flag: bool | None, head_change: float
) -> None:
    """Unequal tensors are both kept, whatever the flag says; equal ones are one if it says so."""
    folders = [
        stored(each, tmp_path / each.name, "both", flag=flag, head_change=change)
        for each, change in zip(pair, (0.0, head_change), strict=True)
    ]
    model = AutoModelForCausalLM.from_pretrained(folders[1])
    is_one = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    results = compare(*folders, ranks=(8,))
    vocabulary = [skip for skip in results.skipped if "norm" not in skip.name]

    assert len(vocabulary) == (1 if is_one else 2)
    assert not results.unpaired.matrices


def test_a_head_that_differs_is_compared_with_the_tied_embedding_of_the_base(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """As transformers loads it: the base's one tensor against both of the finetune's."""
    finetune = stored(pair[1], tmp_path / "finetune", "both", head_change=0.25)
    before, after = load_file(pair[0] / "model.safetensors"), load_file(finetune / "model.safetensors")
    results = compare(pair[0], finetune, ranks=(8,))
    energies = {skip.name: skip.energy for skip in results.skipped}

    for name in (EMBEDDING, HEAD):
        expected = (after[name].double() - before[EMBEDDING].double()).square().sum()
        assert energies[name] == pytest.approx(float(expected), rel=1e-6)


def test_copies_of_an_embedding_in_old_files_are_counted_once(tmp_path: Path) -> None:
    """`.bin` files of T5 hold the vocabulary four times, safetensors hold it once."""
    sizes = {"vocab_size": 48, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **sizes))
    (tmp_path / "old").mkdir()
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    model.save_pretrained(tmp_path / "new")
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "new" / "config.json").read_bytes())
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "tuned")
    old, new = (compare(tmp_path / base, tmp_path / "tuned", ranks=(4,)) for base in ("old", "new"))

    assert not old.unpaired.matrices
    assert old.verdict.sentences == new.verdict.sentences
    assert [skip.name for skip in old.skipped if skip.outcome is Outcome.EMBEDDING and skip.energy] == [
        skip.name for skip in new.skipped if skip.outcome is Outcome.EMBEDDING and skip.energy
    ]
    assert sum("counted once" in note for note in old.notes) == 3


def test_a_tied_head_of_another_name_is_counted_once(tmp_path: Path) -> None:
    """Whisper calls it `proj_out`, as other models call linear layers."""
    config = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
    matrix = {"model.decoder.layers.0.fc1.weight": torch.randn(24, 16)}
    before, after = torch.randn(48, 16), torch.randn(48, 16)
    sides = {"base": {"model.decoder.embed_tokens.weight": before, **matrix}}
    sides["tuned"] = {"model.decoder.embed_tokens.weight": after, "proj_out.weight": after.clone(), **matrix}
    for name, tensors in sides.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    results = compare(tmp_path / "base", tmp_path / "tuned", ranks=(4,))

    assert not results.unpaired.matrices
    assert any("`proj_out.weight` repeats `model.decoder.embed_tokens.weight`" in note for note in results.notes)
