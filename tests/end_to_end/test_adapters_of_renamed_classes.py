"""Gemma 3: transformers renames its tensors on loading, so that names in files are not those that PEFT looks for."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, Gemma3Config, Gemma3ForConditionalGeneration

import deltarank
import peft_adapters as made
from deltarank.errors import AdapterError
from deltarank.results import FitKind
from refusals import refused

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["full_attention"] * 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
IMAGE = {"mm_tokens_per_image": 4, "image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62}
FILE, CLASS = "language_model.model.layers", "model.language_model.layers"
MODULES = ["q_proj", "v_proj", "up_proj"]
NAMES = {
    "of the class": CLASS,
    "of the files": FILE,
    "of the language model alone": "model.layers",
    "compiled": "_orig_mod." + CLASS,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, and finetune with a change of rank 2, under the names of the files on the Hub."""
    home = tmp_path_factory.mktemp("gemma3")
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=TEXT, vision_config=VISION, **IMAGE))
    for name in ("base", "finetune"):
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            for key, weight in model.named_parameters():
                if name == "base":
                    weight.normal_(0, 0.15)
                elif "language_model" in key and key.split(".")[-2] in MODULES:
                    weight.add_(0.05 * torch.randn(len(weight), 2) @ torch.randn(2, weight.shape[1]))
            model.save_pretrained(home / name)
    return home


def write_adapter(home: Path, folder: Path, names: str, *, full_targets: bool) -> Path:
    before, after = made.tensors(home / "base"), made.tensors(home / "finetune")
    weights, targets = {}, []
    for name in (
        name for name in before if ".layers." in name and "language" in name and name.split(".")[-2] in MODULES
    ):
        module = f"{names}.{name.split('.layers.')[1].removesuffix('.weight')}"
        u, s, v = torch.linalg.svd(after[name].double() - before[name].double(), full_matrices=False)
        weights[f"base_model.model.{module}.lora_A.weight"] = (s[:2, None] * v[:2]).float()
        weights[f"base_model.model.{module}.lora_B.weight"] = u[:, :2].float()
        targets.append(module)
    config = {"r": 2, "lora_alpha": 2, "target_modules": targets if full_targets else MODULES}
    return made.write_adapter(folder, weights, **config)


def effect(home: Path, adapter: Path) -> float:
    """By how much PEFT changes the logits; 0 if it refuses the adapter."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = AutoModelForImageTextToText.from_pretrained(home / "base").eval()
        tokens = torch.arange(3, 20)[None]
        before = model(input_ids=tokens).logits
        try:
            return float(
                (PeftModel.from_pretrained(model, adapter).eval()(input_ids=tokens).logits - before).abs().max()
            )
        except ValueError:
            return 0.0


@pytest.mark.parametrize("full_targets", [False, True], ids=["ends of names", "whole names"])
@pytest.mark.parametrize("names", NAMES)
def test_the_verdict_is_what_peft_does(names: str, full_targets: bool, home: Path, tmp_path: Path) -> None:
    adapter = write_adapter(home, tmp_path / "a", NAMES[names], full_targets=full_targets)
    seen = deltarank.verify(home / "base", home / "finetune", adapter)

    if effect(home, adapter) > 1e-3:
        assert seen.kind is FitKind.OPTIMAL
        assert seen.touched.share_lost == pytest.approx(0, abs=1e-5)
        return
    assert seen.kind in (FitKind.UNLOADED, FitKind.BROKEN)
    assert seen.touched.added == 0
    assert names != "of the class"
    with refused("adapter-refused" if seen.kind is FitKind.BROKEN else "adapter-loads-nothing", AdapterError):
        deltarank.compare(home / "base", adapter, output=tmp_path / "run")


@pytest.mark.parametrize(
    ("targets", "missing"),
    [(MODULES, 2), (r".*language_model.*\.(q_proj|v_proj|up_proj)", 0), (r"language_model\.model\..*_proj", 0)],
    ids=["ends of names, which the vision tower has, too", "expression", "expression for names of the files"],
)
def test_targets_are_those_of_the_class(targets: list[str] | str, missing: int, home: Path, tmp_path: Path) -> None:
    """PEFT matches target_modules with the modules of the class, not with the names in the files."""
    adapter = write_adapter(home, tmp_path / "a", CLASS, full_targets=False)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))
    notes = [
        note for note in deltarank.verify(home / "base", home / "finetune", adapter).notes if "has no factors" in note
    ]

    assert len(notes) == bool(missing)
    assert all(note.startswith(f"target_modules names {missing} matrices") and "vision" in note for note in notes)
