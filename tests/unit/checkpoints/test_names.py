"""What a name says of layer, module and vocabulary; and how names with other wrappers find each other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarank.checkpoints import TensorInfo
from deltarank.checkpoints.pairing.name_matches import match_names
from deltarank.checkpoints.pairing.names import TensorLocator, VocabularyRole


def infos(*names: str, shape: tuple[int, ...] = (4, 4)) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, shape, "F32", "x", 0, 0) for name in names}


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.17.mlp.down_proj.weight", 17, "mlp.down_proj"),
        ("model.layers.0.self_attn.q_proj.bias", 0, "self_attn.q_proj.bias"),
        ("transformer.h.3.attn.c_attn.weight", 3, "attn.c_attn"),
        ("h.3.attn.c_attn.weight", 3, "attn.c_attn"),
        ("gpt_neox.layers.5.attention.query_key_value.weight", 5, "attention.query_key_value"),
        ("model.layers.2.mlp.experts.117.down_proj.weight", 2, "mlp.experts.down_proj"),
        ("model.layers.2.block_sparse_moe.experts.7.w1.weight", 2, "block_sparse_moe.experts.w1"),
        ("model.layers.2.mlp.experts.gate_up_proj", 2, "mlp.experts.gate_up_proj"),
        ("model.layers.2.mlp.shared_expert.up_proj.weight", 2, "mlp.shared_expert.up_proj"),
        ("_orig_mod.model.layers.2._checkpoint_wrapped_module.mlp.up_proj.weight", 2, "mlp.up_proj"),
        ("model.embed_tokens.weight", None, "embed_tokens"),
        ("lm_head.weight", None, "lm_head"),
        ("weight", None, "weight"),
        ("model.weight", None, "weight"),
        ("model.layers.99999999999999999999.up.weight", None, "layers.99999999999999999999.up"),
        ("", None, "weight"),
        ("...", None, "..."),
    ],
)
def test_layer_and_module(name: str, layer: int | None, module: str) -> None:
    location = TensorLocator(infos(name)).locate(name)
    assert (layer, module) == (location.layer, location.module)


def test_modules_of_a_small_second_stack_are_prefixed() -> None:
    main = infos(*(f"model.language_model.layers.{i}.mlp.up.weight" for i in range(8)), shape=(100, 100))
    tower = infos(*(f"model.visual.blocks.{i}.mlp.up.weight" for i in range(8)))
    merger = infos("model.visual.merger.mlp.0.weight", "model.visual.merger.mlp.2.weight")
    locator = TensorLocator(main | tower | merger)
    assert locator.locate("model.language_model.layers.3.mlp.up.weight").module == "mlp.up"
    assert locator.locate("model.visual.blocks.3.mlp.up.weight").module == "visual.mlp.up"
    assert locator.locate("model.visual.merger.mlp.2.weight").module == "visual.merger.mlp.2"
    assert locator.locate("model.visual.merger.mlp.2.weight").layer is None


def test_modules_of_two_stacks_of_similar_size_are_prefixed() -> None:
    names = [f"{side}.block.{i}.layer.0.q.weight" for side in ("encoder", "decoder") for i in range(3)]
    locations = [TensorLocator(infos(*names)).locate(name) for name in (names[0], names[-1])]
    assert [(p.layer, p.module) for p in locations] == [(0, "encoder.layer.0.q"), (2, "decoder.layer.0.q")]


def test_a_long_list_of_an_unknown_name_holds_layers_and_a_short_one_does_not() -> None:
    long = infos(*(f"model.stages.{i}.up.weight" for i in range(4)))
    short = infos(*(f"model.stages.{i}.up.weight" for i in range(3)))
    assert TensorLocator(long).locate("model.stages.2.up.weight").layer == 2
    assert TensorLocator(short).locate("model.stages.2.up.weight").layer is None


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.embed_tokens.weight", VocabularyRole.INPUT),
        ("transformer.wte.weight", VocabularyRole.INPUT),
        ("tok_embeddings.weight", VocabularyRole.INPUT),
        ("bert.embeddings.word_embeddings.weight", VocabularyRole.INPUT),
        ("shared.weight", VocabularyRole.INPUT),
        ("lm_head.weight", VocabularyRole.HEAD),
        ("language_model.lm_head.weight", VocabularyRole.HEAD),
        ("output.weight", VocabularyRole.HEAD),
        ("transformer.wpe.weight", VocabularyRole.OTHER),
        ("bert.embeddings.position_embeddings.weight", VocabularyRole.OTHER),
        ("model.layers.0.self_attn.output.weight", None),
        ("classifier.output.weight", None),
        ("score.weight", None),
    ],
)
def test_vocabulary(name: str, role: VocabularyRole | None) -> None:
    assert role is TensorLocator(infos(name)).locate(name).vocabulary


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["model", "layers", "experts", "0", "12", "", "weight", "é"]), max_size=8).map(
            ".".join
        )
    )
)
def test_fuzz_any_name_has_a_location(names: list[str]) -> None:
    tensors = infos(*names)
    locator = TensorLocator(tensors)
    assert all(locator.locate(name).module for name in names)
    assert set(match_names(tensors, tensors).names) == set(names)


INNER = ("layers.0.up.weight", "layers.1.up.weight", "norm.weight")


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (
            "model.",
            "model.language_model.",
            "`model.` of the base is `model.language_model.` in the finetune (3 tensors)",
        ),
        ("language_model.model.", "model.language_model.", "`language_model.model.` of the base is"),
        ("model.", "", "the base prefixes names of the finetune with `model.` (3 tensors)"),
        ("", "transformer.", "the finetune prefixes names of the base with `transformer.`"),
        ("model.", "_orig_mod.module.model.", "is `_orig_mod.module.model.` in the finetune"),
        ("model.", "base_model.model.model.", "is `base_model.model.model.` in the finetune"),
    ],
)
def test_wrappers_are_ignored_and_noted(old: str, new: str, note: str) -> None:
    matches = match_names(infos(*(old + n for n in INNER)), infos(*(new + n for n in INNER)))
    assert {new + n: old + n for n in INNER} == matches.names
    assert len(matches.notes) == 1
    assert note in matches.notes[0]


def test_wrappers_inside_names_are_ignored_and_noted() -> None:
    matches = match_names(infos("model.layers.0.up.weight"), infos("model.layers.0._orig_mod.up.weight"))
    assert matches.names == {"model.layers.0._orig_mod.up.weight": "model.layers.0.up.weight"}
    assert "_orig_mod" in matches.notes[0]


def test_ambiguous_names_are_not_matched() -> None:
    base = infos(*("model." + n for n in INNER), *("module." + n for n in INNER))
    matches = match_names(base, infos(*("transformer." + n for n in INNER)))
    assert matches.names == {}
    assert matches.ambiguous == 3


def test_equal_names_are_matched_first() -> None:
    base = infos(*("model." + n for n in INNER))
    finetune = infos(*("model." + n for n in INNER), *("language_model." + n for n in INNER))
    assert {"model." + n: "model." + n for n in INNER} == match_names(base, finetune).names


def test_a_prefix_whose_shapes_disagree_is_not_accepted() -> None:
    base, finetune = infos(*("model." + n for n in INNER)), infos(*INNER, shape=(4, 5))
    assert match_names(base, finetune).names == {}
    some = finetune | infos(*INNER[:2])
    assert len(match_names(base, some).names) == 3


def test_an_encoder_is_not_taken_for_a_decoder() -> None:
    assert match_names(infos("encoder.layers.0.up.weight"), infos("decoder.layers.0.up.weight")).names == {}
