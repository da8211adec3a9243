"""`verify --merged` on what PEFT itself merged, in each dtype, and on what only resembles it."""

import shutil
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
from deltarank.results import FitKind, MergeCheck, MergeFit, MergeKind

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Edit = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in each dtype, and two adapters that PEFT trained."""
    folder = tmp_path_factory.mktemp("merges")
    base = made.write_base(made.wide_llama, folder / "float32")
    for dtype in ("bfloat16", "float16"):
        AutoModelForCausalLM.from_pretrained(base, dtype=DTYPES[dtype]).save_pretrained(folder / dtype)
    for name, seed in (("adapter", 1), ("other", 7)):
        made.train(base, folder / name, seed=seed, r=8, lora_alpha=24, target_modules=ALL)
    return folder


def merge(
    home: Path,
    folder: Path,
    *,
    base: str = "bfloat16",
    in_dtype: str = "bfloat16",
    stored: str = "bfloat16",
    adapters: tuple[str, ...] = ("adapter",),
    safe: bool = False,
    autocast: bool = True,
) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(home / base, dtype=DTYPES[in_dtype])
        for name in adapters:
            model = PeftModel.from_pretrained(model, home / name, autocast_adapter_dtype=autocast)
            model = model.merge_and_unload(safe_merge=safe)
        model.to(DTYPES[stored]).save_pretrained(folder)
    return folder


def edited(folder: Path, edit: Edit) -> Path:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    return folder


def check(home: Path, merged: Path, *, base: str = "bfloat16", adapter: str = "adapter") -> MergeCheck:
    return deltarank.verify(home / base, merged, home / adapter, merged=True)


@pytest.mark.parametrize(
    ("base", "in_dtype", "stored"),
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "float16"),
        ("float32", "float32", "float32"),
        ("bfloat16", "float32", "bfloat16"),
        ("float32", "float32", "bfloat16"),
        ("float32", "bfloat16", "float16"),
        ("bfloat16", "bfloat16", "float32"),
    ],
)
@pytest.mark.parametrize(("safe", "autocast"), [(False, True), (True, True), (False, False)])
def test_what_peft_merged_is_held_exactly(
    home: Path, tmp_path: Path, base: str, in_dtype: str, stored: str, safe: bool, autocast: bool
) -> None:
    merged = merge(home, tmp_path / "merged", base=base, in_dtype=in_dtype, stored=stored, safe=safe, autocast=autocast)
    found = check(home, merged, base=base)

    assert found.kind is MergeKind.EXACT, found.sentences
    assert {row.mismatches for row in found.tensors} == {0}
    assert sum(row.is_touched for row in found.tensors) == 14
    assert (found.strength, found.other_share) == (1.0, pytest.approx(0, abs=1e-3))
    assert "exactly" in found.sentences[0]
    assert MergeCheck.from_json(found.to_json()) == found


def test_a_merge_that_rounds_otherwise_is_held_up_to_rounding(home: Path, tmp_path: Path) -> None:
    """As on a GPU that sums in another order: some entries are one unit in the last place off."""

    def nudge(weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            if "_proj" in name:
                flat = weight.view(torch.int16).view(-1)
                flat[::1000] += 1

    found = check(home, edited(merge(home, tmp_path / "merged"), nudge))

    assert found.kind is MergeKind.ROUNDING, found.sentences
    assert all((row.mismatches or 0) > 0 for row in found.tensors if row.is_touched)
    assert "exactly" not in found.sentences[0]


@pytest.mark.parametrize(("alpha", "strength"), [(48, 2.0), (12, 0.5), (16, 2 / 3), (-24, -1.0), (27, 1.125)])
def test_a_wrong_alpha_is_a_strength(home: Path, tmp_path: Path, alpha: int, strength: float) -> None:
    made.train(home / "float32", home / f"alpha{alpha}", seed=1, r=8, lora_alpha=24, target_modules=ALL)
    made.edit_config(home / f"alpha{alpha}", lora_alpha=alpha)
    found = check(home, merge(home, tmp_path / "merged", adapters=(f"alpha{alpha}",)))

    assert found.kind is MergeKind.STRENGTH, found.sentences
    assert found.strength == pytest.approx(strength, rel=1e-3)
    assert ("subtracted" in found.sentences[0]) == (strength < 0)


def test_another_adapter_is_not_held(home: Path, tmp_path: Path) -> None:
    found = check(home, merge(home, tmp_path / "merged", adapters=("other",)))

    assert found.kind is MergeKind.ABSENT, found.sentences
    assert found.strength is None
    assert found.other_share == 1.0


def test_the_base_itself_holds_nothing(home: Path, tmp_path: Path) -> None:
    copy = edited(merge(home, tmp_path / "merged", adapters=()), lambda weights: None)
    found = check(home, copy)

    assert found.kind is MergeKind.ABSENT
    assert "unchanged" in found.sentences[0]


def test_a_layer_left_out_is_named(home: Path, tmp_path: Path) -> None:
    base = load_file(home / "bfloat16" / "model.safetensors")

    def restore(weights: dict[str, Tensor]) -> None:
        weights.update({name: weight for name, weight in base.items() if ".layers.1." in name})

    found = check(home, edited(merge(home, tmp_path / "merged"), restore))

    assert found.kind is MergeKind.PART, found.sentences
    assert {row.layer for row in found.tensors if row.fit is MergeFit.ABSENT} == {1}
    assert found.sentences[0].endswith("(layer 0).")
    assert any("model.layers.1." in sentence for sentence in found.sentences)


def test_another_change_is_named_with_its_share(home: Path, tmp_path: Path) -> None:
    def scale(weights: dict[str, Tensor]) -> None:
        weights["model.norm.weight"] *= 1.5

    found = check(home, edited(merge(home, tmp_path / "merged"), scale))
    norm = next(row for row in found.tensors if row.name == "model.norm.weight")

    assert found.kind is MergeKind.WITH_OTHER_CHANGES, found.sentences
    assert norm.fit is MergeFit.CHANGED
    assert found.other_share == pytest.approx(norm.energy / sum(row.energy for row in found.tensors), rel=1e-3)
    assert "exactly" in found.sentences[0]
    assert any("model.norm.weight" in sentence for sentence in found.sentences)


def test_two_adapters_are_the_adapter_and_other_changes(home: Path, tmp_path: Path) -> None:
    found = check(home, merge(home, tmp_path / "merged", adapters=("adapter", "other")))

    assert found.kind is MergeKind.WITH_OTHER_CHANGES, found.sentences
    assert "something else" in found.sentences[0]
    assert found.strength == pytest.approx(1, abs=0.1)
    assert found.other_share is not None
    assert 0.2 < found.other_share < 0.8


def test_a_change_below_the_rounding_is_inconclusive(home: Path, tmp_path: Path) -> None:
    """It is never called a pass: base and merge are the same numbers."""
    made.train(home / "float32", home / "tiny", seed=1, r=8, lora_alpha=24, target_modules=ALL)
    made.edit_config(home / "tiny", lora_alpha=1e-7)
    found = check(home, merge(home, tmp_path / "merged", adapters=("tiny",)), adapter="tiny")

    assert found.kind is MergeKind.INCONCLUSIVE
    assert found.sentences[0].startswith("Inconclusive")
    assert not any("exactly" in sentence for sentence in found.sentences)


@pytest.mark.parametrize("base", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("alpha", [1e-3, 1e-5, 1e-6])
def test_a_copy_of_the_base_never_holds_an_adapter(home: Path, tmp_path: Path, base: str, alpha: float) -> None:
    """Ways to merge round a weak adapter differently: some leave the base's numbers, others move a few entries."""
    made.train(home / "float32", home / "weaker", seed=1, r=8, lora_alpha=24, target_modules=ALL)
    made.edit_config(home / "weaker", lora_alpha=alpha)
    copy = shutil.copytree(home / base, tmp_path / "copy")
    found = check(home, copy, base=base, adapter="weaker")

    assert found.kind in (MergeKind.ABSENT, MergeKind.INCONCLUSIVE), found.sentences
    assert {row.fit for row in found.tensors if row.is_touched} <= {MergeFit.ABSENT, MergeFit.VANISHED}
    assert all(row.fit is MergeFit.VANISHED for row in found.tensors if row.is_touched and row.mismatches == 0)
    assert found.strength is None


def test_a_base_that_was_only_cast_never_holds_an_adapter(home: Path, tmp_path: Path) -> None:
    """A merge in bfloat16 of an adapter below its rounding gives the same numbers as the cast alone."""
    made.train(home / "float32", home / "faint", seed=1, r=8, lora_alpha=24, target_modules=ALL)
    made.edit_config(home / "faint", lora_alpha=1e-7)
    cast = merge(home, tmp_path / "cast", base="float32", in_dtype="bfloat16", stored="float32", adapters=())
    found = check(home, cast, base="float32", adapter="faint")

    assert found.kind is MergeKind.INCONCLUSIVE, found.sentences
    assert {row.fit for row in found.tensors if row.is_touched} == {MergeFit.VANISHED}


def test_one_tensor_with_a_further_change_has_no_other_strength(home: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"

    def add(weights: dict[str, Tensor]) -> None:
        noise = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(3))
        base = load_file(home / "bfloat16" / "model.safetensors")[name]
        size = (weights[name] - base).float().std()
        weights[name] = (weights[name].float() + size * noise).to(weights[name].dtype)

    found = check(home, edited(merge(home, tmp_path / "merged"), add))
    text = " ".join(found.sentences)

    assert found.kind is MergeKind.WITH_OTHER_CHANGES, found.sentences
    assert "holds adapter, and something else changed, too" in found.sentences[0]
    assert f"1 tensor that the adapter changes has a further change: {name}." in text
    assert "of the change from the base does not come from this adapter." in text


def test_a_change_that_is_not_the_adapters_is_said_to_be_none_of_it(home: Path, tmp_path: Path) -> None:
    def scale(weights: dict[str, Tensor]) -> None:
        weights["model.norm.weight"] *= 1.5

    found = check(home, edited(merge(home, tmp_path / "merged", adapters=()), scale))

    assert found.kind is MergeKind.ABSENT, found.sentences
    assert "None of the change from the base comes from this adapter." in found.sentences


def test_a_module_held_in_some_layers_is_named_with_them(home: Path, tmp_path: Path) -> None:
    base = load_file(home / "bfloat16" / "model.safetensors")
    missing = [f"model.layers.0.{name}.weight" for name in ("self_attn.o_proj", "mlp.up_proj")]
    missing += [name for name in base if ".layers.1.self_attn." in name]
    found = check(home, edited(merge(home, tmp_path / "merged"), lambda weights: _restore(weights, base, missing)))

    assert found.kind is MergeKind.PART, found.sentences
    assert "self_attn.q_proj in layer 0" in found.sentences[0]
    assert any("6 tensors do not hold it; all 6 are equal to the base's: model." in each for each in found.sentences)


def _restore(weights: dict[str, Tensor], base: dict[str, Tensor], names: list[str]) -> None:
    weights.update({name: base[name] for name in names})


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (made.wide_llama, {"target_modules": ALL, "modules_to_save": ["lm_head"]}),
        (made.wide_llama, {"target_modules": ALL, "use_rslora": True}),
        (made.wide_llama, {"target_modules": ALL, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"up_proj": 5}}),
        (made.wide_llama, {"target_modules": ["q_proj", "embed_tokens"]}),
        (made.gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        (made.qwen2, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    ],
)  # fmt: skip
def test_what_else_an_adapter_may_be(tmp_path: Path, make: made.Make, config: dict[str, object]) -> None:
    base = made.write_base(make, tmp_path / "base")
    made.train(base, tmp_path / "adapter", **({"r": 4, "lora_alpha": 7} | config))
    merged = made.merge(base, tmp_path / "adapter", tmp_path / "merged")
    found = deltarank.verify(base, merged, tmp_path / "adapter", merged=True)

    assert found.kind is MergeKind.EXACT, found.sentences


def test_the_command_prints_it(home: Path, tmp_path: Path, command: RunCommand) -> None:
    merged = merge(home, tmp_path / "merged")
    done = command("verify", home / "bfloat16", merged, home / "adapter", "--merged")

    assert done.code == 0
    assert "holds adapter exactly" in " ".join(done.out.split())
    assert command("verify", home / "bfloat16", merged, home / "adapter", "--merged", "--server", "vllm").code == 2


def test_verify_allows_for_the_rounding_of_a_merge(home: Path, tmp_path: Path) -> None:
    """Most entries of a weak adapter are below half a unit in the last place of bfloat16, and leave no trace."""
    made.train(home / "float32", home / "weak", seed=1, r=8, lora_alpha=24, target_modules=ALL)
    made.edit_config(home / "weak", lora_alpha=0.1)
    merged = merge(home, tmp_path / "merged", adapters=("weak",))
    right = deltarank.verify(home / "bfloat16", merged, home / "weak")
    made.edit_config(home / "weak", lora_alpha=0.2)
    wrong = deltarank.verify(home / "bfloat16", merged, home / "weak")

    assert right.kind is FitKind.OPTIMAL, right.sentences
    assert right.touched.share_lost is not None
    assert 0.1 < right.touched.share_lost < 0.9
    assert "explains all of the rest" in right.sentences[0]
    assert not any("scale" in sentence for sentence in right.sentences)
    assert [row.energies.scaled_by for row in right.tensors if row.is_touched] == pytest.approx([1.0] * 14, abs=1e-3)
    assert wrong.kind is FitKind.MISSCALED, wrong.sentences
    assert 1.5 < (wrong.touched.scaled_by or 0) < 3  # a guess, since rounding takes more of the weaker one


def test_an_adapter_extracted_from_a_rounded_merge_is_rightly_scaled(home: Path, tmp_path: Path) -> None:
    """Rounding W0 + L once more would lose a part of L; but an extracted L is fitted to what the rounding left."""
    made.train(home / "float32", home / "faint", seed=1, r=8, lora_alpha=24, target_modules=ALL)
    made.edit_config(home / "faint", lora_alpha=0.1)
    merged = merge(home, tmp_path / "merged", adapters=("faint",))
    deltarank.extract(home / "bfloat16", merged, rank=8, output=tmp_path / "extracted")
    found = deltarank.verify(home / "bfloat16", merged, tmp_path / "extracted")

    assert found.kind is FitKind.OPTIMAL, found.sentences
    assert not any("scale" in sentence for sentence in found.sentences)
    assert found.touched.rounded_inner is not None
    assert found.touched.rounded_inner < 0.97 * found.touched.added
    assert found.touched.scaled_by == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("adapter", "kind"), [("adapter", MergeKind.ROUNDING), ("other", MergeKind.ABSENT)])
def test_a_merge_that_was_quantised_is_held_up_to_the_rounding_of_its_format(
    home: Path, tmp_path: Path, adapter: str, kind: MergeKind
) -> None:
    def quantise(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if "_proj" in name]:
            scale = weights[name].float().abs().max() / 448
            weights[name] = (weights[name].float() / scale).to(torch.float8_e4m3fn)
            weights[f"{name}_scale"] = scale.reshape(1)

    merged = merge(home, tmp_path / "merged", base="float32", in_dtype="float32", stored="float32", adapters=(adapter,))
    found = check(home, edited(merged, quantise), base="float32")

    assert found.kind is kind, found.sentences
    assert "exactly" not in found.sentences[0]


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"])
def test_a_merge_with_a_tensor_that_cannot_be_compared_is_not_exact_in_all_of_it(
    home: Path, tmp_path: Path, name: str
) -> None:
    """One is changed by the adapter, the other is not."""
    checked = check(home, edited(merge(home, tmp_path / "m"), lambda weights: weights[name][0, :1].fill_(torch.nan)))

    assert "no other changed" not in checked.sentences[0]
    assert "no other that could be compared changed, not counting " in checked.sentences[0]
    assert "of its parameters, which could not be measured" in checked.sentences[0]
