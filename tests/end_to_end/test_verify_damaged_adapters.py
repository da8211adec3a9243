"""An adapter with a tensor missing, extra, of another shape: the verdict is what becomes of it in PEFT itself."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import deltarank
import peft_adapters as made
from commands import RunCommand
from deltarank.errors import AdapterError
from deltarank.results import FitKind
from refusals import refused

STEM = "base_model.model.model.layers.0.mlp.up_proj"
A, B = f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight"
HEAD = "base_model.model.lm_head.weight"

Edit = Callable[[dict[str, Tensor]], object]
REFUSED: dict[str, Edit] = {
    "A of other inputs": lambda t: t.update({A: torch.ones(4, 31)}),
    "B of other outputs": lambda t: t.update({B: torch.ones(49, 4)}),
    "A of another rank": lambda t: t.update({A: torch.ones(3, 32)}),
    "both of another rank": lambda t: t.update({A: torch.ones(3, 32), B: torch.ones(48, 3)}),
    "A of three dimensions": lambda t: t.update({A: torch.ones(1, 4, 32)}),
    "a whole tensor of another shape": lambda t: t.update({HEAD: torch.ones(48, 31)}),
}
HARMLESS: dict[str, Edit] = {
    "B missing": lambda t: t.pop(B),
    "both missing": lambda t: (t.pop(A), t.pop(B)),
    "a layer that the model lacks": lambda t: t.update({A.replace("s.0", "s.9"): t[A], B.replace("s.0", "s.9"): t[B]}),
    "a module that is not targeted, misshapen": lambda t: t.update(
        {A.replace("up", "down"): torch.ones(4, 7), B.replace("up", "down"): torch.ones(3, 4)}
    ),
    "biases that the configuration does not know of": lambda t: t.update({f"{STEM}.lora_B.bias": torch.ones(48)}),
    "a name that says nothing": lambda t: t.update({"lora": torch.ones(3)}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a trained LoRA on it, and its merge as the finetune."""
    home = tmp_path_factory.mktemp("models")
    base = made.write_base(made.llama, home / "base")
    made.train(base, home / "adapter", r=4, lora_alpha=8, target_modules=["up_proj", "q_proj"])
    made.merge(base, home / "adapter", home / "finetune")
    return home


def edited(models: Path, folder: Path, edit: Edit) -> Path:
    folder.mkdir()
    weights = load_file(models / "adapter" / "adapter_model.safetensors")
    edit(weights)
    save_file({k: v.clone() for k, v in weights.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes((models / "adapter" / "adapter_config.json").read_bytes())
    return folder


def loaded(models: Path, adapter: Path) -> dict[str, Tensor]:
    """The merged weights."""
    model = AutoModelForCausalLM.from_pretrained(models / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in merged.state_dict().items()}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_peft_refuses_is_broken(case: str, models: Path, tmp_path: Path) -> None:
    adapter = edited(models, tmp_path / "a", REFUSED[case])
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded(models, adapter)
    seen = deltarank.verify(models / "base", models / "finetune", adapter)

    assert seen.kind is FitKind.BROKEN
    assert "cannot work" in seen.sentences[0]
    assert (HEAD if "whole" in case else STEM) in seen.sentences[0]
    assert "PEFT refuses an adapter" in seen.sentences[1]
    assert "save_pretrained" in seen.sentences[1]
    with refused("adapter-refused", AdapterError):
        deltarank.compare(models / "base", adapter)


def transpose(*ends: str) -> Edit:
    """Of the tensors whose keys end in one of these."""
    return lambda t: t.update({key: tensor.T.contiguous() for key, tensor in t.items() if key.endswith(ends)})


TRANSPOSED: dict[str, tuple[Edit, str]] = {
    "every B": (transpose(".lora_B.weight"), "B is stored"),
    "every A": (transpose(".lora_A.weight"), "A is stored"),
    "every A and B": (transpose(".lora_A.weight", ".lora_B.weight"), "A and B are stored"),
    "A and B of square matrices": (transpose("q_proj.lora_A.weight", "q_proj.lora_B.weight"), "A and B are stored"),
    "one B": (transpose("0.mlp.up_proj.lora_B.weight"), "B is stored"),
}


@pytest.mark.parametrize("case", TRANSPOSED)
def test_factors_that_are_stored_transposed_are_called_that(case: str, models: Path, tmp_path: Path) -> None:
    edit, said = TRANSPOSED[case]
    adapter = edited(models, tmp_path / "a", edit)
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded(models, adapter)
    seen = deltarank.verify(models / "base", models / "finetune", adapter)

    assert seen.kind is FitKind.BROKEN
    assert f"{said} transposed" in seen.sentences[0]
    assert "Transpose what is stored transposed" in seen.sentences[1]
    for finetune in (adapter, adapter / "adapter_model.safetensors"):
        with refused("adapter-refused", AdapterError, match=f"{said} transposed") as caught:
            deltarank.compare(models / "base", finetune)
        assert "Transpose what is stored transposed" in caught.value.cure


@pytest.mark.parametrize("case", HARMLESS)
def test_tensors_that_peft_ignores_break_nothing(case: str, models: Path, tmp_path: Path) -> None:
    adapter = edited(models, tmp_path / "a", HARMLESS[case])
    weights = loaded(models, adapter)
    merged = made.write_checkpoint(
        tmp_path / "merged", {name: weights[name] for name in made.tensors(models / "base")}, models / "base"
    )
    seen = deltarank.verify(models / "base", merged, adapter)

    assert seen.kind is FitKind.OPTIMAL
    assert seen.whole.share_lost == pytest.approx(0, abs=1e-9)
    assert bool(seen.unused) == (case != "both missing")


def test_a_bias_of_a_module_that_is_not_targeted_adds_nothing(models: Path, tmp_path: Path) -> None:
    down = STEM.replace("up", "down")
    adapter = edited(models, tmp_path / "a", lambda t: t.update({f"{down}.lora_B.bias": torch.ones(32)}))
    made.edit_config(adapter, lora_bias=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        served = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models / "base"), adapter)
    seen = deltarank.verify(models / "base", models / "finetune", adapter)

    assert not any("down_proj.lora_B" in name for name, _ in served.named_parameters())
    assert seen.whole.share_lost == pytest.approx(0, abs=1e-9)
    assert [each.reason for each in seen.unused] == ["target_modules does not name its module, so PEFT ignores it"]


def test_a_finetune_with_a_shorter_vocabulary_breaks_no_adapter_of_the_base(models: Path, tmp_path: Path) -> None:
    adapter = made.train(models / "base", tmp_path / "a", r=2, target_modules=["up_proj", "q_proj", "lm_head"])
    weights = made.tensors(models / "finetune")
    weights |= {name: weights[name][:40] for name in ("lm_head.weight", "model.embed_tokens.weight")}
    tuned = made.write_checkpoint(tmp_path / "tuned", weights, models / "base")
    seen = deltarank.verify(models / "base", tuned, adapter)

    assert loaded(models, adapter)["lm_head.weight"].shape[0] == 48
    assert seen.kind is not FitKind.BROKEN
    assert any("48 x 2 by 2 x 32 does not fit 40 x 32" in each.reason for each in seen.unused)


def test_without_its_a_peft_adds_random_numbers(models: Path, tmp_path: Path) -> None:
    adapter = edited(models, tmp_path / "a", lambda t: t.pop(A))
    name = "model.layers.0.mlp.up_proj.weight"
    torch.manual_seed(0)
    first = loaded(models, adapter)[name]
    second = loaded(models, adapter)[name]
    seen = deltarank.verify(models / "base", models / "finetune", adapter)

    assert float((first - second).abs().max()) > 1e-4
    assert seen.kind is FitKind.BROKEN
    assert f"{B}: the other factor, `{A}`, is missing" in seen.sentences[0]
    assert "random" in seen.sentences[1]


def test_a_module_without_factors_is_named(models: Path, tmp_path: Path) -> None:
    adapter = edited(models, tmp_path / "a", HARMLESS["both missing"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models / "base"), adapter)
    seen = deltarank.verify(models / "base", models / "finetune", adapter)
    whole = deltarank.verify(models / "base", models / "finetune", models / "adapter")

    assert any("missing adapter keys" in str(each.message) and STEM in str(each.message) for each in told)
    (said,) = [note for note in seen.notes if "target_modules" in note]
    assert said.startswith("target_modules names 1 matrix that the file has no factors for")
    assert said.endswith(": `model.layers.0.mlp.up_proj`")
    assert not any("target_modules" in note for note in whole.notes)


def test_layers_that_are_not_targets_are_not_noted_as_missing(models: Path, tmp_path: Path) -> None:
    adapter = made.train(
        models / "base",
        tmp_path / "a",
        r=2,
        target_modules=["up_proj"],
        layers_to_transform=[1],
        layers_pattern="layers",
    )
    seen = deltarank.verify(models / "base", models / "finetune", adapter)

    assert not any("target_modules" in note for note in seen.notes)


def test_an_unknown_field_is_noted(models: Path, tmp_path: Path) -> None:
    adapter = edited(models, tmp_path / "a", lambda t: None)
    made.edit_config(adapter, use_miracles={"many": True}, use_none=False)
    seen = deltarank.verify(models / "base", models / "finetune", adapter)
    written_by_peft = deltarank.verify(models / "base", models / "finetune", models / "adapter")
    (note,) = [note for note in seen.notes if "PEFT 0.21 does not have" in note]

    assert note.endswith(": use_miracles")
    assert not any("does not have" in note for note in written_by_peft.notes)


def test_the_command_prints_what_is_wrong_and_a_cure(models: Path, tmp_path: Path, command: RunCommand) -> None:
    adapter = edited(models, tmp_path / "a", REFUSED["A of other inputs"])
    done = command("verify", models / "base", models / "finetune", adapter, "-q")
    printed = " ".join(done.out.split())

    assert done.code == 0
    assert printed.startswith(f"a cannot work: {B}: 48 x 4 by 4 x 31 does not fit 48 x 32.")
    assert "Download or copy the adapter again" in printed
