"""Finetunes with other layers than their base, or other tokens: named, and not counted as one full finetune."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import base_weights, full_finetune, write
from torch import Tensor

import deltarank
from deltarank.report.view.build import page_data
from deltarank.report.view.headline import plain_text
from deltarank.results import BaseKind, Outcome, VerdictKind

Tensors = dict[str, Tensor]


def deeper() -> Tensors:
    """Four layers."""
    one, other = base_weights(0), base_weights(1)
    for old, new in ((0, 2), (1, 3)):
        one |= {n.replace(f".layers.{old}.", f".layers.{new}."): w for n, w in other.items() if f".layers.{old}." in n}
    return one


def renumbered(weights: Tensors, layers: list[int]) -> Tensors:
    """A model of these layers, in this order."""
    made = {name: w for name, w in weights.items() if ".layers." not in name}
    for i, layer in enumerate(layers):
        own = {name: w for name, w in weights.items() if f".layers.{layer}." in name}
        made |= {name.replace(f".layers.{layer}.", f".layers.{i}."): w.clone() for name, w in own.items()}
    return made


def with_a_layer_from_scratch(weights: Tensors) -> Tensors:
    scratch = {name.replace(".layers.0.", ".layers.2."): w for name, w in base_weights(7).items()}
    return {name: scratch[name] if ".layers.2." in name else w for name, w in weights.items()}


def transposed(weights: Tensors) -> Tensors:
    """Square matrices, whose shapes do not show it."""
    return {name: w.T if "o_proj" in name else w for name, w in weights.items()}


def in_another_order(weights: Tensors) -> Tensors:
    """The rows of q, as Meta's files have them."""
    permuted = lambda w: w.view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32)  # noqa: E731
    return {name: permuted(w) if "q_proj" in name else w for name, w in weights.items()}


OTHER_LAYERS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "pruned": (lambda weights: renumbered(weights, [0, 2, 3]), "model.layers.1 and model.layers.2 differ"),
    "upscaled": (lambda weights: renumbered(weights, [0, 1, 2, 1, 2, 3]), "model.layers.3 differs"),
    "from scratch": (with_a_layer_from_scratch, "model.layers.2 differs"),
    "transposed": (transposed, "self_attn.o_proj differs"),
    "permuted": (in_another_order, "self_attn.q_proj differs"),
}


@pytest.mark.parametrize("kind", OTHER_LAYERS)
def test_layers_that_are_not_the_base_s_are_named(kind: str, tmp_path: Path) -> None:
    edit, said = OTHER_LAYERS[kind]
    base = write(tmp_path / "base", deeper(), dtype=torch.float32)
    tuned = write(tmp_path / "tuned", edit(full_finetune(deeper(), scale=0.001)), dtype=torch.float32)
    results = deltarank.compare(base, tuned, ranks=(8,))
    headline = results.verdict.sentences[0]

    assert results.verdict.kind is VerdictKind.UNRELATED
    assert headline.startswith("tuned can be compared with this base only in part")
    assert said in headline
    assert "and the others by 5" in headline  # 0.001 of 0.02
    assert "not a finetune" not in headline
    assert plain_text(page_data([results]).headlines[0]).replace("\N{NO-BREAK SPACE}", " ") == headline


def test_an_extraction_warns_of_matrices_that_are_unlike_the_base_s(tmp_path: Path) -> None:
    base = write(tmp_path / "base", base_weights(), dtype=torch.float32)
    tuned = write(tmp_path / "tuned", transposed(full_finetune(base_weights(), scale=0.001)), dtype=torch.float32)
    adapter = deltarank.extract(base, tuned, output=tmp_path / "adapter", rank=8)

    (note,) = [note for note in adapter.notes if "only in part" in note]
    assert "self_attn.o_proj differs by" in note


def test_the_base_of_a_pruned_model_is_found_by_its_own_layers(tmp_path: Path) -> None:
    tuned = renumbered(full_finetune(deeper(), scale=0.001), [0, 2, 3])
    made = {"base": deeper(), "sibling": full_finetune(deeper(), seed=8, scale=0.002), "other": base_weights(9)}
    base, *others = [write(tmp_path / name, weights) for name, weights in made.items()]
    choice = deltarank.which_base(write(tmp_path / "tuned", tuned), [base, *others], matrices=12)

    assert choice.kind is BaseKind.FOUND
    assert choice.base
    assert choice.base.reference.ref == str(base)
    assert choice.base.relative_norm == pytest.approx(0.05, rel=0.1)
    assert "4 of 8 random matrices differ from those of every candidate as unrelated ones do" in choice.sentence


@pytest.mark.parametrize("rows", [range(63, 16, -1), range(64)])
def test_rows_of_other_tokens_are_not_compared(tmp_path: Path, rows: range) -> None:
    """A vocabulary that was pruned and reordered; one that grew is compared as before."""
    base, tuned = base_weights(), full_finetune(base_weights())
    vocabulary = ("model.embed_tokens.weight", "lm_head.weight")
    tuned |= {name: torch.cat([tuned[name][list(rows)], torch.zeros(3, 32)]) for name in vocabulary}
    results = deltarank.compare(write(tmp_path / "base", base), write(tmp_path / "tuned", tuned), ranks=(8,))
    outcomes = {skip.name: skip.outcome for skip in results.skipped if skip.name in vocabulary and skip.energy is None}
    is_pruned = len(rows) < 64

    assert outcomes == dict.fromkeys(vocabulary, Outcome.OTHER_TOKENS if is_pruned else Outcome.EXTRA_ROWS)
    assert ("of its parameters, which could not be paired" in results.verdict.sentences[0]) == is_pruned
    assert not any("Freezing" in sentence for sentence in results.verdict.sentences) or not is_pruned
