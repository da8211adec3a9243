"""Every tensor of both sides ends somewhere, with a reason that a user can read."""

import shutil
import time
from pathlib import Path

import pytest
import torch
from files import Tensors, entry, layout, llama, numbers, pairing, raw, read, save

from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import DeltarankError, PairingError, UsageError
from deltarank.results import Outcome

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def two(tmp_path: Path, base: Tensors, finetune: Tensors, **config: object) -> tuple[Path, Path]:
    folders = (tmp_path / "base", base), (tmp_path / "finetune", finetune)
    one, other = (save(folder, tensors, config=config or None) for folder, tensors in folders)
    return one, other


def refusal(base: Path, finetune: Path, **globs: list[str]) -> DeltarankError:
    with pytest.raises(DeltarankError) as caught:
        pairing(base, finetune, **globs)
    assert caught.value.cure
    assert caught.value.message.isprintable()
    return caught.value


def test_matrices_are_measured_and_the_rest_is_summed(tmp_path: Path) -> None:
    plan = pairing(*two(tmp_path, llama(), llama(seed=9)))
    modules = ("mlp.down_proj", "self_attn.k_proj", "self_attn.q_proj")
    assert [(layer, module) for layer in (0, 1) for module in modules] == [(p.layer, p.module) for p in plan.pairs]
    assert {x.name: x.outcome for x in plan.summed} == {
        "model.embed_tokens.weight": Outcome.EMBEDDING,
        "lm_head.weight": Outcome.EMBEDDING,
        "model.norm.weight": Outcome.NOT_A_MATRIX,
        "model.layers.0.input_layernorm.weight": Outcome.NOT_A_MATRIX,
        "model.layers.1.input_layernorm.weight": Outcome.NOT_A_MATRIX,
    }
    assert plan.skipped == ()
    assert plan.notes == ()


def test_order_is_by_layer_as_numbers(tmp_path: Path) -> None:
    plan = pairing(*two(tmp_path, llama(layers=12), llama(layers=12, seed=9)))
    layers = [pair.layer for pair in plan.pairs]
    assert sorted(layers) == layers
    assert layers[-1] == 11


def test_every_tensor_is_paired_summed_or_skipped(tmp_path: Path) -> None:
    base = {**llama(), "only.base": numbers(2), "both.int": torch.ones(3, dtype=torch.int32), "c": numbers(4, 2, 3, 3)}
    finetune = {**llama(seed=9, words=50), "only.ours": numbers(2), "both.int": base["both.int"], "c": base["c"]}
    finetune["model.norm.weight"] = numbers(99)
    plan = pairing(*two(tmp_path, base, finetune))
    seen = [x.name for x in (*plan.pairs, *plan.summed)]
    seen += [x.name for x in plan.skipped if x.outcome is not Outcome.EXTRA_ROWS]
    assert sorted(seen) == sorted({*base, *finetune})
    assert all(x.reason for x in (*plan.summed, *plan.skipped))


def test_skipped_tensors_say_why(tmp_path: Path) -> None:
    base = {**llama(), "only.base": numbers(2), "int": torch.ones(3, 3, dtype=torch.int32), "empty": numbers(0, 3)}
    finetune = {**llama(seed=9), "only.ours": numbers(2), "int": base["int"], "empty": base["empty"]}
    finetune["model.layers.0.mlp.down_proj.weight"] = numbers(16, 50)
    plan = pairing(*two(tmp_path, base, finetune))
    reasons = {x.name: (x.outcome, x.reason) for x in plan.skipped}
    assert reasons["only.base"][0] is Outcome.ONLY_IN_BASE
    assert reasons["only.ours"][0] is Outcome.ONLY_IN_FINETUNE
    assert reasons["int"] == (Outcome.NOT_FLOATING, "stored as `I32` in the base: not floating-point weights")
    assert reasons["empty"] == (Outcome.NOT_A_MATRIX, "contains no numbers")
    assert reasons["model.layers.0.mlp.down_proj.weight"] == (
        Outcome.SHAPE_DIFFERS,
        "16 x 48 in the base, 16 x 50 in the finetune",
    )


def test_different_dtypes_are_noted(tmp_path: Path) -> None:
    finetune = {name: tensor.float() for name, tensor in llama(seed=9).items()}
    plan = pairing(*two(tmp_path, llama(), finetune))
    assert {"bfloat16 -> float32"} == {pair.dtype for pair in plan.pairs}
    assert any("bfloat16 -> float32" in note for note in plan.notes)
    assert {"bfloat16"} == {p.dtype for p in pairing(*two(tmp_path / "same", llama(), llama(seed=9))).pairs}


@pytest.mark.parametrize("grown", ["base", "finetune"])
def test_a_longer_vocabulary_is_compared_as_far_as_both_go(grown: str, tmp_path: Path) -> None:
    sides = {"base": llama(), "finetune": llama(seed=9)}
    other = sides["finetune" if grown == "base" else "base"]
    longer = {name: torch.cat([1.125 * other[name], numbers(3, 16)]) for name in VOCABULARY}
    sides[grown] = {**llama(seed=3), **longer}
    folders = two(tmp_path, sides["base"], sides["finetune"])
    with open_checkpoint(folders[0]) as base, open_checkpoint(folders[1]) as finetune:
        plan = pair_checkpoints(base, finetune)
        for name in VOCABULARY:
            (summed,) = (x for x in plan.summed if x.name == name)
            assert summed.shape == (40, 16)
            ours, theirs = read(summed)
            assert torch.equal(ours, sides["base"][name][:40])
            assert torch.equal(theirs, sides["finetune"][name][:40])
            (extra,) = (x for x in plan.skipped if x.name == name)
            assert extra.outcome is Outcome.EXTRA_ROWS
            assert extra.reason == f"rows 40 to 42 are only in the {grown}, whose vocabulary is larger"
            assert extra.shape == (3, 16)
        asked = pair_checkpoints(base, finetune, include=["*lm_head*"])
        assert [pair.shape for pair in asked.pairs] == [(40, 16)]


def test_a_head_tied_in_the_base_is_compared_with_its_embedding(tmp_path: Path) -> None:
    base = {name: tensor for name, tensor in llama().items() if name != "lm_head.weight"}
    folders = two(tmp_path, base, llama(seed=9))
    with open_checkpoint(folders[0]) as a, open_checkpoint(folders[1]) as b:
        plan = pair_checkpoints(a, b)
        (tied,) = (x for x in plan.summed if x.outcome is Outcome.TIED)
        assert tied.name == "lm_head.weight"
        assert (
            tied.reason
            == "the base does not store it separately: compared with `model.embed_tokens.weight` of the base"
        )
        assert torch.equal(read(tied)[0], base["model.embed_tokens.weight"])
        assert torch.equal(read(tied)[1], llama(seed=9)["lm_head.weight"])
        (pair,) = pair_checkpoints(a, b, include=["lm_head*"]).pairs
        assert pair.base.tensor == "model.embed_tokens.weight"


def test_a_head_tied_in_the_finetune_is_compared_with_its_embedding(tmp_path: Path) -> None:
    longer = {"model.embed_tokens.weight": torch.cat([1.125 * llama()["lm_head.weight"], numbers(4, 16)])}
    finetune = {name: tensor for name, tensor in llama(seed=9).items() if name != "lm_head.weight"} | longer
    plan = pairing(*two(tmp_path, llama(), finetune, tie_word_embeddings=True))
    (tied,) = (x for x in plan.summed if x.outcome is Outcome.TIED)
    assert (tied.name, tied.finetune.tensor) == ("lm_head.weight", "model.embed_tokens.weight")
    assert tied.shape == (40, 16)


def test_a_head_that_the_configuration_denies_is_tied_is_unmatched(tmp_path: Path) -> None:
    base = {name: tensor for name, tensor in llama().items() if name != "lm_head.weight"}
    plan = pairing(*two(tmp_path, base, llama(seed=9), text_config={"tie_word_embeddings": False}))
    assert {x.name: x.outcome for x in plan.skipped} == {"lm_head.weight": Outcome.ONLY_IN_FINETUNE}


def test_other_prefixes_are_matched_and_noted(tmp_path: Path) -> None:
    plan = pairing(*two(tmp_path, llama(), llama(seed=9, prefix="model.language_model.")))
    assert len(plan.pairs) == 6
    assert plan.pairs[0].name.startswith("model.language_model.layers.0.")
    assert plan.pairs[0].base.tensor.startswith("model.layers.0.")
    assert plan.notes == ("the prefix `model.` of the base is `model.language_model.` in the finetune (10 tensors)",)


def test_slices_of_fused_experts_are_pairs(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    base, finetune = {name: numbers(3, 4, 6)}, {name: numbers(3, 4, 6, seed=1), name + "_bias": numbers(3, 6)}
    folders = two(tmp_path, base | {name + "_bias": numbers(3, 6)}, finetune)
    with open_checkpoint(folders[0]) as a, open_checkpoint(folders[1]) as b:
        plan = pair_checkpoints(a, b)
        assert [f"{name}[{i}]" for i in range(3)] == [pair.name for pair in plan.pairs]
        for i, pair in enumerate(plan.pairs):
            assert (pair.layer, pair.module, pair.shape) == (1, "mlp.experts.gate_up_proj", (4, 6))
            assert torch.equal(read(pair)[0], base[name][i])
            assert torch.equal(read(pair)[1], finetune[name][i])
        (bias,) = plan.summed
        assert bias.reason == "among the biases, which a LoRA cannot represent"


def test_convolutions_are_summed_not_measured(tmp_path: Path) -> None:
    conv = {"model.layers.0.conv1d.weight": numbers(32, 1, 4), "visual.patch.weight": numbers(8, 3, 2, 4, 4)}
    folders = two(tmp_path, llama() | conv, llama(seed=9) | conv)
    for include in ([], ["*"]):
        plan = pairing(*folders, include=include)
        shapes = {x.name: (x.outcome, x.shape, x.base.shape) for x in plan.summed if x.name in conv}
        assert shapes == {
            "model.layers.0.conv1d.weight": (Outcome.NOT_A_MATRIX, (32, 1, 4), (32, 4)),
            "visual.patch.weight": (Outcome.NOT_A_MATRIX, (8, 3, 2, 4, 4), (8, 96)),
        }


def test_a_scalar_is_one_number(tmp_path: Path) -> None:
    scale = {"scale": numbers()}
    plan = pairing(*two(tmp_path, llama() | scale, llama(seed=9) | scale))
    (summed,) = (x for x in plan.summed if x.name == "scale")
    assert (summed.shape, summed.base.shape) == ((), (1, 1))


def test_include_measures_the_matrices_that_it_names_and_reads_nothing_else(tmp_path: Path) -> None:
    folders = two(tmp_path, llama(), llama(seed=9))
    plan = pairing(*folders, include=["*norm*", "mlp.down_proj", "*embed_tokens*"])
    assert {pair.name: pair.shape for pair in plan.pairs} == {
        "model.embed_tokens.weight": (40, 16),
        "model.layers.0.mlp.down_proj.weight": (16, 48),
        "model.layers.1.mlp.down_proj.weight": (16, 48),
    }
    norms = [f"model.layers.{i}.input_layernorm.weight" for i in (0, 1)]
    assert sorted(each.name for each in plan.summed) == [*norms, "model.norm.weight"]
    assert {Outcome.EXCLUDED} == {x.outcome for x in plan.skipped}
    assert len(plan.skipped) == 5


def test_exclude_wins_and_leaves_the_rest_as_it_was(tmp_path: Path) -> None:
    folders = two(tmp_path, llama(), llama(seed=9))
    plan = pairing(*folders, exclude=["*layers.0.*"])
    assert {1} == {pair.layer for pair in plan.pairs}
    assert len(plan.summed) == 4
    plan = pairing(*folders, include=["*q_proj*", "*k_proj*"], exclude=["*.0.*"])
    assert sorted(pair.module for pair in plan.pairs) == ["self_attn.k_proj", "self_attn.q_proj"]


@pytest.mark.parametrize(
    ("glob", "near"),
    [
        ("*dwn_proj*", "`mlp.down_proj`"),
        ("down_proj", "`mlp.down_proj`"),
        ("model.layers.0.mlp.down_prj.weight", "`model.layers.0.mlp.down_proj.weight`"),
        ("*Q_PROJ*", "`self_attn.q_proj`"),
        ("", "Modules: "),
        ("[", "Modules: "),
        ("zzzzzz", "Modules: "),
        ("\n`rm`" * 1000, "Modules: "),
    ],
)
def test_a_glob_that_matches_nothing_gets_near_names(glob: str, near: str, tmp_path: Path) -> None:
    folders = two(tmp_path, llama(), llama(seed=9))
    for error in (refusal(*folders, include=[glob]), refusal(*folders, exclude=[glob])):
        assert isinstance(error, UsageError)
        assert error.slug == "glob-matches-nothing"
        assert near in error.cure
        assert error.cure.isprintable()
        assert len(str(error)) < 1000


def test_one_of_several_globs_that_matches_nothing_is_enough(tmp_path: Path) -> None:
    error = refusal(*two(tmp_path, llama(), llama(seed=9)), include=["*down_proj*", "*gate*"])
    assert "`*gate*`" in error.message


def test_globs_that_leave_no_matrix(tmp_path: Path) -> None:
    error = refusal(*two(tmp_path, llama(), llama(seed=9)), exclude=["*"])
    assert error.slug == "nothing-to-measure"
    assert "--exclude" in error.cure


def test_the_same_folder_twice(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", llama(), shards=2)
    (tmp_path / "link").symlink_to(folder)
    for other in (folder, tmp_path / "link", tmp_path / "a" / ".." / "a"):
        error = refusal(folder, other)
        assert isinstance(error, PairingError)
        assert error.slug == "same-checkpoint"


def test_a_copy_is_not_the_same_files(tmp_path: Path) -> None:
    """Its numbers are equal, and that is a result."""
    folder = save(tmp_path / "a", llama())
    assert pairing(folder, Path(shutil.copytree(folder, tmp_path / "b"))).pairs


def test_nothing_in_common(tmp_path: Path) -> None:
    error = refusal(*two(tmp_path, llama(), {"unet.down.0.weight": numbers(4, 4)}))
    assert error.slug == "nothing-in-common"
    assert "`model.layers.0.mlp.down_proj.weight`" in error.message
    assert "`unet.down.0.weight`" in error.message


def test_a_common_head_alone_is_no_common_matrix(tmp_path: Path) -> None:
    folders = two(tmp_path, llama(hidden=32, words=44), llama(seed=9, prefix="language_model.model."))
    assert refusal(*folders).slug == "nothing-in-common"


def test_only_a_vocabulary_in_common_can_be_included(tmp_path: Path) -> None:
    head = {"lm_head.weight": numbers(4, 4)}
    folders = two(tmp_path, head | {"a.weight": numbers(2, 2)}, head | {"b.weight": numbers(2, 2)})
    assert refusal(*folders).slug == "nothing-in-common"
    assert [pair.name for pair in pairing(*folders, include=["lm_head*"]).pairs] == ["lm_head.weight"]


def test_packed_weights_are_reported_as_quantised(tmp_path: Path) -> None:
    packed = {"model.layers.0.mlp.down_proj.qweight": torch.ones(4, 4, dtype=torch.int32)}
    base = save(tmp_path / "a", llama())
    finetune = save(tmp_path / "b", packed, config={"quantization_config": {"quant_method": "gptq"}})
    error = refusal(base, finetune)
    assert error.slug == "quantised-format"
    assert "the finetune is stored quantised (`gptq`)" in error.message
    assert "`bits` of `quantization_config`" in error.message


def test_no_tensor_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").write_bytes(raw({}))
    folder = save(tmp_path / "a", llama())
    assert refusal(tmp_path / "empty.safetensors", folder).slug == "no-weights"


def test_the_wrong_base(tmp_path: Path) -> None:
    error = refusal(*two(tmp_path, llama(hidden=32), llama(seed=9)))
    assert error.slug == "wrong-base"
    assert "6 of 6 matrices" in error.message
    assert "32 x 96" in error.message
    assert "16 x 48" in error.message


@pytest.mark.parametrize("square", [0, 6])
def test_matrices_stored_as_their_transpose_are_refused_by_name(tmp_path: Path, square: int) -> None:
    """As nanoGPT and GPT-2 of transformers store each other's. Square ones would be compared with their transpose."""
    layer = {f"h.0.{name}.weight": numbers(8, 16, seed=i) for i, name in enumerate(("c_attn", "c_fc", "mlp"))}
    layer |= {f"h.0.square{i}.weight": numbers(8, 8, seed=i) for i in range(square)}
    turned = {name: tensor.t().contiguous() for name, tensor in layer.items()}
    error = refusal(*two(tmp_path, layer, turned))

    assert error.slug == "transposed-weights"
    assert "3 of 3 matrices that are not square" in error.message
    assert error.cure.startswith("Transpose the linear layers")


def test_a_few_other_shapes_are_not_the_wrong_base(tmp_path: Path) -> None:
    finetune = dict(llama(seed=9)) | {"model.layers.0.mlp.down_proj.weight": numbers(16, 4)}
    assert len(pairing(*two(tmp_path, llama(), finetune)).pairs) == 5


def test_different_layer_counts_are_noted(tmp_path: Path) -> None:
    plan = pairing(*two(tmp_path, llama(), llama(layers=3, seed=9)))
    assert "the base has 2 layers and the finetune 3: layers with equal numbers are compared" in plan.notes
    assert len(plan.pairs) == 6


def test_different_model_types_are_noted(tmp_path: Path) -> None:
    base = save(tmp_path / "a", llama(), config={"model_type": "llama"})
    finetune = save(tmp_path / "b", llama(seed=9), config={"model_type": "mist`ral\n" * 99})
    (note,) = pairing(base, finetune).notes
    assert note.startswith("the model type is `llama` in the base and `mist")
    assert note.isprintable()


def test_undecoded_weights_are_skipped_with_a_reason(tmp_path: Path) -> None:
    codes = {name: tensor.to(torch.int8) for name, tensor in llama().items() if tensor.ndim == 2}
    rest = {name: tensor for name, tensor in llama().items() if tensor.ndim != 2}
    error = refusal(*two(tmp_path, llama(), codes | rest))
    assert error.slug == "not-floating"
    assert "`I8` in the finetune" in error.message


def test_an_unknown_dtype_is_skipped_by_name(tmp_path: Path) -> None:
    header = {"a": entry("F32", (1, 2), 0, 8), "b": entry("Q\n3", (7,), 8, 9)}
    for name in ("x", "y"):
        (tmp_path / f"{name}.safetensors").write_bytes(raw(header, 9))
    plan = pairing(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert [x.reason for x in plan.skipped] == ["stored as `Q\\n3` in the base: not floating-point weights"]


def test_unmerged_adapters_are_refused(tmp_path: Path) -> None:
    lora = {"model.layers.0.mlp.down_proj.lora_A.default.weight": numbers(4, 16)}
    error = refusal(*two(tmp_path, llama(), llama(seed=9) | lora))
    assert error.slug == "adapter-not-merged"
    assert "finetune" in error.message


def test_hostile_names_are_plain_names_in_the_plan(tmp_path: Path) -> None:
    """What shows them escapes them: the plan keeps them as they are, so that they can be found again."""
    name = "model.layers.0.<script>alert(1)</script>\n\u202e.weight"
    plan = pairing(*two(tmp_path, {name: numbers(4, 4)}, {name: numbers(4, 4, seed=1)}))
    assert [name] == [pair.name for pair in plan.pairs]


@pytest.mark.slow
def test_twenty_thousand_tensors_are_paired_in_seconds(tmp_path: Path) -> None:
    for side, prefix in (("x", "model."), ("y", "language_model.model.")):
        shapes = {f"{prefix}layers.{i // 800}.mlp.experts.{i}.up_proj.weight": ("BF16", (2, 3)) for i in range(20_000)}
        header, size = layout(shapes)
        (tmp_path / f"{side}.safetensors").write_bytes(raw(header, size))
    before = time.process_time()
    plan = pairing(tmp_path / "x.safetensors", tmp_path / "y.safetensors", exclude=["*layers.0.*"])
    assert time.process_time() - before < 10
    assert len(plan.pairs) == 20_000 - 800
    assert "(20,000 tensors)" in plan.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        pytest.param([".".join(["0"] * 200_000), ".".join(["layers.0"] * 100_000), "experts.0" * 100_000], id="dots"),
        pytest.param([f"{i}.lm_head.weight" for i in range(8000)], id="heads"),
        pytest.param([f"{i}.embed_tokens.weight" for i in range(8000)], id="embeddings"),
        pytest.param(["model." * i + "x.weight" for i in range(500)], id="wrappers"),
        pytest.param([f"layers.{i}.{'x' * 300}{i}.weight" for i in range(5000)], id="long names"),
    ],
)
def test_names_made_to_be_slow_are_fast(names: list[str], tmp_path: Path) -> None:
    shapes = {"a.weight": ("F32", (2, 2))} | dict.fromkeys(names, ("F32", (2, 2)))
    header, size = layout(shapes)
    (tmp_path / "x.safetensors").write_bytes(raw(header, size))
    other = {f"b{name}" if i % 2 else name: shape for i, (name, shape) in enumerate(shapes.items())}
    header, size = layout(other)
    (tmp_path / "y.safetensors").write_bytes(raw(header, size))
    before = time.process_time()
    pairing(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    if max(map(len, names)) > 300:  # shorter ones do not match the pattern at a glance
        with pytest.raises(UsageError):
            pairing(tmp_path / "x.safetensors", tmp_path / "y.safetensors", include=["*down" + "?" * 300])
    assert time.process_time() - before < 8
