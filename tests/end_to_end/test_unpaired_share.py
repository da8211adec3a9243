"""What could not be paired or measured stands in the first sentence; nothing is called identical beside it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deltarank import Results, compare, extract, verify, which_base
from deltarank.report.view.build import page_data
from deltarank.report.view.headline import plain_text
from deltarank.results import Outcome, VerdictKind
from peft_adapters import write_adapter

Tensors = dict[str, torch.Tensor]


def model(seed: int, *, change: float = 0.0) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"model.layers.{i}.{x}_proj.weight": torch.randn(24, 24, generator=generator) for i in (0, 1) for x in "oqk"
    }
    noise = torch.Generator().manual_seed(seed)
    return {n: t + change * torch.randn(t.shape, generator=noise) for n, t in tensors.items()}


def pair(tmp_path: Path, change: float) -> tuple[Path, Path]:
    base, finetune = model(0), model(1, change=change)
    finetune = {n.replace("k_proj", "unlike"): t for n, t in finetune.items()}
    for name, tensors in (("base", base), ("finetune", finetune)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path / "base", tmp_path / "finetune"


REMARK = "not counting 33 % of its parameters, which could not be paired with the base"


def test_the_share_stands_in_every_first_sentence(tmp_path: Path) -> None:
    folders = pair(tmp_path, 0.05)
    results = compare(*folders, ranks=(8,))
    adapter = extract(*folders, output=tmp_path / "adapter", rank=8, server="peft")
    checked = verify(*folders, tmp_path / "adapter")

    assert REMARK in results.verdict.sentences[0]
    assert REMARK in plain_text(page_data([results]).headlines[0]).replace("\N{NO-BREAK SPACE}", " ")
    assert REMARK in adapter.sentence
    assert REMARK in checked.sentences[0]
    assert REMARK in which_base(folders[1], [folders[0]]).sentence


def test_equal_parts_are_not_called_identical(tmp_path: Path) -> None:
    folders = pair(tmp_path, 0.0)
    results = compare(*folders, ranks=(8,))
    adapter = extract(*folders, output=tmp_path / "adapter", rank=8, server="peft")

    assert results.verdict.kind is VerdictKind.UNKNOWN
    for sentence in (
        results.verdict.sentences[0],
        plain_text(page_data([results]).headlines[0]).replace("\N{NO-BREAK SPACE}", " "),
        adapter.sentence,
        verify(*folders, tmp_path / "adapter").sentences[0],
    ):
        assert "33 % of its parameters" in sentence
        assert not any(word in sentence for word in ("identical", "equals", "changed nothing", "100 %", "same numbers"))


@pytest.mark.parametrize("side", ["base", "finetune"])
def test_equal_matrices_beside_biases_of_one_side_are_not_called_identical(tmp_path: Path, side: str) -> None:
    """A finetune that lost its biases, or has new ones."""
    bias = {"model.layers.0.q_proj.bias": torch.ones(24)}
    for name in ("base", "finetune"):
        (tmp_path / name).mkdir()
        save_file(model(0) | (bias if name == side else {}), tmp_path / name / "model.safetensors")
    results = compare(tmp_path / "base", tmp_path / "finetune", ranks=(8,))
    headline = plain_text(page_data([results]).headlines[0]).replace("\N{NO-BREAK SPACE}", " ")

    assert results.verdict.kind is VerdictKind.UNKNOWN
    for sentence in (results.verdict.sentences[0], headline):
        assert "the change in 1 vector without a counterpart, is unknown" in sentence


def broken_pair(tmp_path: Path, change: float, place: str, value: float) -> tuple[Path, Path]:
    """A tensor of the finetune contains NaN or Inf: one matrix of six, or the embedding."""
    base, finetune = model(0), model(1, change=change)
    for tensors in (base, finetune):
        tensors["model.embed_tokens.weight"] = torch.ones(48, 24)
    finetune[place] = finetune[place].clone()
    finetune[place][3, 5] = value
    for name, tensors in (("base", base), ("finetune", finetune)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return tmp_path / "base", tmp_path / "finetune"


PLACES = {"model.layers.1.o_proj.weight": "12 %", "model.embed_tokens.weight": "25 %"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", PLACES)
def test_what_was_not_measured_stands_in_every_first_sentence(tmp_path: Path, place: str, value: float) -> None:
    folders = broken_pair(tmp_path, 0.05, place, value)
    remark = f"not counting {PLACES[place]} of its parameters, which could not be measured"
    results = compare(*folders, ranks=(8,))
    adapter = extract(*folders, output=tmp_path / "adapter", rank=8, server="peft")
    checked = verify(*folders, tmp_path / "adapter")

    assert remark in results.verdict.sentences[0]
    assert results.verdict.sentences[1].startswith("What was compared is")
    assert remark in plain_text(page_data([results]).headlines[0]).replace("\N{NO-BREAK SPACE}", " ")
    assert remark in adapter.sentence
    assert remark in checked.sentences[0]
    assert "cannot work" not in checked.sentences[0]  # it is the checkpoint that contains NaN or Inf
    outcomes = {each.name: each.outcome for each in (*results.matrices, *results.skipped)}
    assert outcomes[place] is Outcome.NOT_FINITE


@pytest.mark.parametrize("place", PLACES)
def test_a_finetune_is_not_called_equal_while_a_tensor_was_not_measured(tmp_path: Path, place: str) -> None:
    folders = broken_pair(tmp_path, 0.0, place, float("nan"))
    results = compare(*folders, ranks=(8,))
    adapter = extract(*folders, output=tmp_path / "adapter", rank=8, server="peft")

    assert results.verdict.kind is VerdictKind.UNKNOWN
    for sentence in (
        results.verdict.sentences[0],
        plain_text(page_data([results]).headlines[0]).replace("\N{NO-BREAK SPACE}", " "),
        adapter.sentence,
        verify(*folders, tmp_path / "adapter").sentences[0],
    ):
        assert f"{PLACES[place]} of its parameters, which could not be measured" in sentence
        assert not any(word in sentence for word in ("identical", "equals", "changed nothing", "100 %", "same numbers"))


def half_loaded(tmp_path: Path, scale: float) -> tuple[Path, Path]:
    """A base, and LoRAs on q, which PEFT loads, and on k, under names that it ignores."""
    (tmp_path / "base").mkdir()
    save_file(model(0), tmp_path / "base" / "model.safetensors")
    factors = {}
    for wrapper, module in (("", "q_proj"), ("_orig_mod.", "k_proj")):
        for layer in (0, 1):
            stem = f"base_model.model.{wrapper}model.layers.{layer}.{module}"
            factors[f"{stem}.lora_A.weight"] = torch.randn(2, 24, generator=torch.Generator().manual_seed(layer))
            factors[f"{stem}.lora_B.weight"] = scale * torch.ones(24, 2)
    targets = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "k_proj"]}
    return tmp_path / "base", write_adapter(tmp_path / "adapter", factors, **targets)


UNLOADED = "not counting 50 % of the adapter's parameters, which PEFT does not load"


@pytest.mark.parametrize("scale", [0.01, 0.0])
def test_what_peft_does_not_load_of_an_adapter_stands_in_every_first_sentence(tmp_path: Path, scale: float) -> None:
    base, adapter = half_loaded(tmp_path, scale)
    results = compare(base, adapter, ranks=(8,))

    assert UNLOADED in results.verdict.sentences[0]
    assert UNLOADED in plain_text(page_data([results]).headlines[0]).replace("\N{NO-BREAK SPACE}", " ")
    assert UNLOADED in extract(base, adapter, output=tmp_path / "extracted", rank=8, server="peft").sentence
    assert Results.from_json(results.to_json()).unpaired == results.unpaired
    if scale:
        assert UNLOADED in verify(base, adapter, tmp_path / "extracted").sentences[0]
