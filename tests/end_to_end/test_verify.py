"""`deltarank verify`: what an adapter makes of its base, held against float64, against `compare` and against PEFT."""

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import deltarank
import peft_adapters as made
from commands import RunCommand
from deltarank.results import FitKind, Outcome, TensorChange, TensorFit, Verification
from tiny_architectures import DENSE, EXPERTS, write_pair

RANK = 4
ALL = [f"{word}_proj" for word in ("q", "k", "v", "o", "gate", "up", "down")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base; tuned, a full finetune of it; best, the best LoRA of rank 4 by a float64 SVD; trained, by PEFT; merged."""
    home = tmp_path_factory.mktemp("models")
    base = made.write_base(made.llama, home / "base")
    tuned = made.finetune(base, home / "tuned")
    write_best(home, home / "best")
    trained = made.train(base, home / "trained", r=RANK, lora_alpha=3, target_modules=ALL)
    made.merge(base, trained, home / "merged")
    assert tuned.exists()
    return home


def write_best(models: Path, folder: Path, *, weights: Mapping[str, Tensor] | None = None, **config: Any) -> Path:
    factors = made.best_factors(models / "base", models / "tuned", RANK) if weights is None else weights
    return made.write_adapter(folder, factors, **{"r": RANK, "lora_alpha": RANK, "target_modules": ALL, **config})


def verified(models: Path, adapter: Path | str, **options: Any) -> Verification:
    folder = models / adapter if isinstance(adapter, str) else adapter
    return deltarank.verify(models / "base", models / options.pop("tuned", "tuned"), folder, **options)


def loras(found: Verification) -> list[TensorFit]:
    return [row for row in found.tensors if row.change is TensorChange.LORA]


def delta(models: Path, name: str) -> np.ndarray:
    before, after = made.tensors(models / "base")[name], made.tensors(models / "tuned")[name]
    return after.double().numpy() - before.double().numpy()


def test_every_figure_is_numpy_s(models: Path) -> None:
    """A trained LoRA beside a finetune that it was not trained for: D, L and the best possible in float64."""
    found = verified(models, "trained")

    merged = made.tensors(models / "merged")
    before = made.tensors(models / "base")
    assert len(loras(found)) == 14
    for row in loras(found):
        d = delta(models, row.name)
        added = merged[row.name].double().numpy() - before[row.name].double().numpy()
        values = np.linalg.svd(d, compute_uv=False)

        assert row.rank == RANK
        assert row.scale == 3 / RANK
        assert row.energies.energy == pytest.approx(float((d**2).sum()), rel=1e-5)
        assert row.energies.lost == pytest.approx(float(((d - added) ** 2).sum()), rel=1e-5)
        assert row.energies.added == pytest.approx(float((added**2).sum()), rel=1e-5)
        assert row.energies.inner == pytest.approx(float((d * added).sum()), abs=1e-5 * row.energies.energy)
        assert row.energies.best == pytest.approx(float((values[RANK:] ** 2).sum()), rel=1e-5)


def test_tensors_that_the_adapter_leaves_alone_count_in_the_whole(models: Path) -> None:
    found = verified(models, "best")

    alone = [row for row in found.tensors if row.change is TensorChange.NONE]
    assert {row.name for row in alone} == {name for name in made.tensors(models / "base") if "_proj" not in name}
    energies = {name: float((delta(models, name) ** 2).sum()) for name in made.tensors(models / "base")}
    assert found.whole.energy == pytest.approx(math.fsum(energies.values()), rel=1e-6)
    lost = math.fsum(row.energies.lost for row in loras(found)) + math.fsum(energies[row.name] for row in alone)
    assert found.whole.lost == pytest.approx(lost, rel=1e-6)


def test_the_best_lora_is_optimal_with_the_loss_of_compare(models: Path) -> None:
    found = verified(models, "best")
    promised = deltarank.compare(models / "base", models / "tuned", ranks=[RANK])

    assert found.kind is FitKind.OPTIMAL
    assert "within 0.01 % of optimal" in found.sentences[0]
    assert found.touched.share_lost == pytest.approx(promised.totals.whole.loss(RANK).energy_lost, rel=1e-5)
    assert found.touched.scaled_by == pytest.approx(1, abs=1e-5)
    for row in loras(found):
        loss = next(m for m in promised.matrices if m.name == row.name).loss(RANK)
        assert row.energies.share_lost == pytest.approx(loss.energy_lost, rel=1e-5)
        assert row.energies.share_best == pytest.approx(loss.energy_lost, rel=1e-5)


def test_a_trained_lora_equals_the_merge_of_peft(models: Path) -> None:
    found = verified(models, "trained", tuned="merged")

    assert found.kind is FitKind.OPTIMAL
    assert found.whole.share_lost < 1e-9
    assert "keeps over 99.9 %" in found.sentences[0]
    assert {row.outcome for row in found.tensors if row.change is TensorChange.NONE} == {Outcome.IDENTICAL}


@pytest.mark.parametrize("factor", [0.5, 2.0, 1.25])
def test_a_wrong_scale_is_reported_with_its_factor(models: Path, tmp_path: Path, factor: float) -> None:
    found = verified(models, write_best(models, tmp_path, lora_alpha=RANK * factor))

    assert found.kind is FitKind.MISSCALED
    assert found.touched.scaled_by == pytest.approx(factor, rel=1e-4)
    assert f"Its scale is wrong by a factor of {factor:g}" in found.sentences[1]
    assert f"multiplied by {factor:g}, and 1 fits best" in found.sentences[1]


def test_an_adapter_that_moves_away_keeps_no_share_of_the_whole_change(models: Path, tmp_path: Path) -> None:
    sentences = verified(models, write_best(models, tmp_path, lora_alpha=RANK * 5)).sentences

    assert "moves the base away from the finetune" in sentences[0]
    assert not any("Of the whole change" in sentence for sentence in sentences)
    assert any(" of the whole change lies in " in sentence for sentence in sentences)


def test_one_matrix_of_a_wrong_scale_is_named(models: Path, tmp_path: Path) -> None:
    adapter = write_best(models, tmp_path, alpha_pattern={"layers.1.mlp.down_proj": 3 * RANK})

    found = verified(models, adapter)
    assert found.kind is FitKind.MISSCALED
    assert "1 matrix has a wrong scale" in found.sentences[1]
    assert "model.layers.1.mlp.down_proj.weight by 3" in found.sentences[1]

    assert verified(models, adapter, server="vllm").kind is FitKind.MISSCALED
    served = verified(models, adapter, server="vllm-0.31")
    assert served.kind is FitKind.OPTIMAL
    assert served.sentences[0].startswith("As vLLM up to 0.31 serves it, ")
    assert any("alpha_pattern" in note for note in served.notes)


def test_a_server_without_rank_stabilisation_scales_by_a_half(models: Path, tmp_path: Path) -> None:
    adapter = write_best(models, tmp_path, use_rslora=True, lora_alpha=math.sqrt(RANK))

    assert verified(models, adapter).kind is FitKind.OPTIMAL
    assert "Its scale is wrong by a factor of 0.5" in verified(models, adapter, server="sglang").sentences[1]


READINGS: Mapping[str, tuple[dict[str, Any], dict[str, Any], str, tuple[float, ...]]] = {
    "one alpha": ({"alpha_pattern": dict.fromkeys(ALL, 8)}, {"alpha_pattern": {}}, "vllm-0.31", (0.5,)),
    "one scale": (
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 32, "v_proj": 2}},
        {"alpha_pattern": {"q_proj": 8}},
        "vllm-0.31",
        (0.25, 2.0),
    ),
    "the rank of each tensor": ({"rank_pattern": {"q_proj": 8}}, {"alpha_pattern": {"q_proj": 4}}, "llama.cpp", ()),
    "no rank stabilisation": ({"use_rslora": True}, {"use_rslora": False}, "sglang", (0.5,)),
}
"""What was trained, how a server reads it, in PEFT's own words, and by what that is wrong."""


@pytest.mark.parametrize("case", READINGS)
def test_a_server_applies_the_configuration_as_it_reads_it(case: str, models: Path, tmp_path: Path) -> None:
    trained, read, server, factors = READINGS[case]
    base = models / "base"
    adapter = made.train(base, tmp_path / "a", r=4, lora_alpha=4, target_modules=ALL, **trained)
    finetune = made.merge(base, adapter, tmp_path / "finetune")
    seen = deltarank.verify(base, finetune, adapter, server=server)
    right = deltarank.verify(base, finetune, adapter)
    made.edit_config(adapter, **read)
    served, truth = made.tensors(made.merge(base, adapter, tmp_path / "served")), made.tensors(finetune)
    lost = {name: float((served[name].double() - truth[name].double()).square().sum()) for name in truth}

    assert right.kind is FitKind.OPTIMAL
    assert seen.whole.lost == pytest.approx(sum(lost.values()), rel=1e-4, abs=1e-9)
    assert {round(row.energies.scaled_by or 0, 3) for row in loras(seen)} - {1.0} == set(factors)
    assert seen.kind is (FitKind.MISSCALED if factors else FitKind.OPTIMAL)
    if len(factors) == 1:
        assert "wrong by a factor of 0.5" in seen.sentences[1]
        assert "over 99.9 %" in seen.sentences[2]


def test_mixed_ranks_are_over_scaled_by_llama_cpp(models: Path, tmp_path: Path) -> None:
    weights = made.best_factors(models / "base", models / "tuned", RANK)
    stem = "base_model.model.model.layers.0.self_attn.q_proj."
    weights[stem + "lora_A.weight"] = weights[stem + "lora_A.weight"][:1]
    weights[stem + "lora_B.weight"] = weights[stem + "lora_B.weight"][:, :1]
    pattern = {"layers.0.self_attn.q_proj": 1}
    adapter = write_best(models, tmp_path, weights=weights, rank_pattern=pattern, alpha_pattern=pattern)

    assert verified(models, adapter).kind is FitKind.OPTIMAL
    assert "model.layers.0.self_attn.q_proj.weight by 4" in verified(models, adapter, server="llama.cpp").sentences[1]


def test_a_lora_that_is_not_optimal(models: Path, tmp_path: Path) -> None:
    """The second to fifth directions in place of the first four."""
    five = made.best_factors(models / "base", models / "tuned", RANK + 4)
    weights = {key: w[4:] if "_A" in key else w[:, 4:] for key, w in five.items()}

    found = verified(models, write_best(models, tmp_path, weights=weights))

    assert found.kind is FitKind.SHORT
    assert "short of optimal" in found.sentences[0]
    assert found.touched.excess > 0.02


def test_an_adapter_of_another_finetune(models: Path, tmp_path: Path) -> None:
    other = made.finetune(models / "base", tmp_path / "other", seed=9)
    weights = made.best_factors(models / "base", other, RANK)

    found = verified(models, write_best(models, tmp_path / "adapter", weights=weights))

    assert found.kind is FitKind.STRANGER
    assert "does not belong to this base and finetune" in found.sentences[0]


def test_the_command_names_the_base_of_an_unrelated_adapter(models: Path, tmp_path: Path, command: RunCommand) -> None:
    """Of another size, of other names, and of equal shapes: its configuration names the base to look for."""
    other = made.write_base(made.llama, tmp_path / "other", seed=5)
    adapter = made.train(other, tmp_path / "a", r=2, target_modules=ALL)
    made.edit_config(adapter, base_model_name_or_path="org/other")
    wide = made.write_base(made.wide_llama, tmp_path / "wide")
    gpt2 = made.write_base(made.gpt2, tmp_path / "gpt2")
    for base, tuned in ((wide, made.finetune(wide, tmp_path / "w")), (gpt2, made.finetune(gpt2, tmp_path / "g"))):
        done = command("verify", base, tuned, adapter, "-q")
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(
            "deltarank: This adapter does not belong to this base: 14 of 14 parts match no tensor"
        )
        assert "adapter_config.json names org/other." in done.err

    done = command("verify", models / "base", models / "tuned", adapter, "-q")
    printed = " ".join(done.out.split())
    assert done.code == 0
    assert printed.startswith("a does not belong to this base and finetune")
    assert "Its adapter_config.json names org/other as its base." in printed


def test_base_and_finetune_the_wrong_way_round(models: Path) -> None:
    found = deltarank.verify(models / "tuned", models / "base", models / "best")

    assert found.kind is FitKind.STRANGER
    assert "the opposite" in found.sentences[0]
    assert "the two were exchanged" in found.sentences[0]


def test_an_adapter_that_was_never_trained(models: Path, tmp_path: Path) -> None:
    adapter = made.train(models / "base", tmp_path / "adapter", steps=0, r=RANK, target_modules=ALL)

    found = verified(models, adapter)

    assert found.kind is FitKind.EMPTY
    assert found.touched.share_lost == pytest.approx(1)


def test_a_finetune_that_changed_nothing(models: Path, tmp_path: Path) -> None:
    copy = made.write_checkpoint(tmp_path / "copy", made.tensors(models / "base"), models / "base")
    zero = made.train(models / "base", tmp_path / "adapter", steps=0, r=RANK, target_modules=ALL)

    found = deltarank.verify(models / "base", copy, zero)
    assert found.kind is FitKind.NOTHING
    assert "changes nothing either" in found.sentences[0]
    assert "does change it" in deltarank.verify(models / "base", copy, models / "best").sentences[0]


@pytest.mark.parametrize("number", [math.nan, math.inf, 3e38])
def test_nan_in_an_adapter_is_an_outcome(models: Path, tmp_path: Path, number: float) -> None:
    weights = made.best_factors(models / "base", models / "tuned", RANK)
    weights["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"][1] = number
    weights["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"][:] = 10

    found = verified(models, write_best(models, tmp_path, weights=weights))

    broken = [row for row in loras(found) if row.outcome is Outcome.NOT_FINITE]
    assert found.kind is FitKind.BROKEN
    assert [row.name for row in broken] == ["model.layers.0.mlp.up_proj.weight"]
    assert "cannot work" in found.sentences[0]
    assert math.isfinite(found.whole.lost)


def test_zero_padding_loses_nothing(models: Path, tmp_path: Path) -> None:
    """Rank 40 in matrices whose full rank is 32 or less: the whole finetune, but for what has no LoRA."""
    weights = made.best_factors(models / "base", models / "tuned", 40)
    padded = {
        key: torch.cat([w, w.new_zeros(40 - len(w), w.shape[1])])
        if "_A" in key
        else torch.cat([w, w.new_zeros(len(w), 40 - w.shape[1])], 1)
        for key, w in weights.items()
    }

    found = verified(models, write_best(models, tmp_path, weights=padded, r=40, lora_alpha=40))

    assert found.kind is FitKind.OPTIMAL
    assert found.touched.best == 0
    assert found.touched.share_lost < 1e-9


def test_modules_that_peft_saved_whole_count_in_the_whole_change(models: Path, tmp_path: Path) -> None:
    """PEFT takes "norm" for every module whose name ends in it."""
    base = models / "base"
    adapter = made.train(base, tmp_path / "a", r=2, target_modules=ALL, modules_to_save=["lm_head", "norm"])
    merged = made.merge(base, adapter, tmp_path / "merged")
    seen = deltarank.verify(base, merged, adapter)

    assert seen.whole.share_lost == pytest.approx(0, abs=1e-9)
    assert any("over 99.9 %, with 6 tensors stored whole (lm_head, " in sentence for sentence in seen.sentences)


def test_tensors_that_are_not_counted_are_noted(models: Path, tmp_path: Path) -> None:
    """NaN in the finetune, a tensor that one side alone has, a vocabulary that grew."""
    weights = made.tensors(models / "tuned")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = math.nan
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.ones(3, 32)])
    weights["model.extra.weight"] = torch.ones(2, 2)
    tuned = made.write_checkpoint(tmp_path / "tuned", weights, models / "base")
    deltarank.extract(models / "base", tuned, rank=8, server="peft", output=tmp_path / "a")
    seen = deltarank.verify(models / "base", tuned, tmp_path / "a")
    notes = "\n".join(seen.notes)

    assert (
        "`model.embed_tokens.weight` has 51 rows in the adapter and 48 in the base: PEFT loads it only after" in notes
    )
    assert "not counted: 1 tensor (model.layers.0.mlp.up_proj.weight): a checkpoint contains NaN or Inf here" in notes
    assert "not counted: 1 tensor (model.extra.weight): only in the finetune" in notes
    assert "rows 48 to 50 are only in the finetune" in notes
    assert not any("not counted" in note for note in verified(models, "best").notes)


def test_biases_that_the_base_lacks_count_as_peft_adds_them(models: Path, tmp_path: Path) -> None:
    """Of a zero, PEFT's module makes its bias. PEFT itself merges no such adapter."""
    base = models / "base"
    adapter = made.train(
        base, tmp_path / "a", r=2, lora_alpha=6, target_modules=["q_proj", "up_proj"], lora_bias=True, steps=1
    )
    weights = load_file(adapter / "adapter_model.safetensors")
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
    bare = made.write_adapter(tmp_path / "bare", {k: w for k, w in weights.items() if not k.endswith("bias")}, **config)
    finetune = made.merge(base, bare, tmp_path / "finetune")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        served = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    added = {
        f"{name.removeprefix('base_model.model.')}.bias": float(module(torch.zeros(1, 32)).square().sum())
        for name, module in served.named_modules()
        if name.endswith(("q_proj", "up_proj"))
    }
    seen = deltarank.verify(base, finetune, adapter)
    found = {row.name: row.energies for row in seen.tensors if row.name.endswith(".bias")}

    assert len(added) == 4
    assert {name: energies.added for name, energies in found.items()} == pytest.approx(added, rel=1e-5)
    assert seen.whole.lost == pytest.approx(sum(added.values()), rel=1e-5)
    assert seen.touched.share_lost == pytest.approx(0, abs=1e-9)
    assert seen.unused == ()
    assert any("adds 4 biases where neither checkpoint has one" in sentence for sentence in seen.sentences)


def test_a_bias_of_another_length_is_refused_as_peft_refuses_it(models: Path, tmp_path: Path) -> None:
    base = models / "base"
    adapter = made.train(base, tmp_path / "a", r=2, target_modules=["q_proj"], lora_bias=True, steps=1)
    weights = load_file(adapter / "adapter_model.safetensors")
    key = next(key for key in weights if key.endswith("bias"))
    save_file(weights | {key: torch.ones(5)}, adapter / "adapter_model.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        made.merge(base, adapter, tmp_path / "m")
    seen = deltarank.verify(base, models / "tuned", adapter)

    assert seen.kind is FitKind.BROKEN
    assert f"{key}: 5 does not fit 32 x 32" in seen.sentences[0]


def test_a_lora_in_bfloat16_is_measured_as_it_is_stored(models: Path, tmp_path: Path) -> None:
    weights = {key: w.bfloat16() for key, w in made.best_factors(models / "base", models / "tuned", RANK).items()}

    found = verified(models, write_best(models, tmp_path, weights=weights))

    assert found.kind is FitKind.OPTIMAL
    assert 0 < found.touched.excess < 1e-4


@pytest.mark.parametrize("server", ["portable", "peft"])
@pytest.mark.parametrize("name", ["tied llama", "phi3", "gpt2", "mixtral", "qwen3 moe", "gpt-oss"])
def test_every_architecture_is_measured_as_extract_states(tmp_path: Path, name: str, server: str) -> None:
    base, tuned = write_pair({**DENSE, **EXPERTS}[name], tmp_path)
    if (name, server) == ("gpt2", "portable"):
        server = "lorax"  # no adapter for it is portable
    adapter = deltarank.extract(base, tuned, output=tmp_path / "adapter", rank=8, server=server, dtype="bfloat16")

    found = deltarank.verify(base, tuned, tmp_path / "adapter", server=server)

    assert found.kind is FitKind.OPTIMAL
    assert found.unused == ()
    assert not any("target_modules" in note or "not counted" in note for note in found.notes)
    assert found.whole.share_lost == pytest.approx(1 - adapter.budget.kept, abs=1e-5)
    assert {row.name for row in loras(found)} == {matrix.name for matrix in adapter.matrices}


# ---- the command


def test_the_command_prints_sentences_and_a_table(models: Path, command: RunCommand) -> None:
    done = command("verify", models / "base", models / "tuned", models / "best")

    assert done.code == 0
    assert "within 0.01 % of optimal" in " ".join(done.out.split())
    assert "mlp.down_proj" in done.out
    assert "scaled by" in done.out
    assert "Of the whole change" in done.out
    assert max(map(len, done.out.splitlines())) <= 120


def test_the_command_prints_json_alone(models: Path, command: RunCommand) -> None:
    done = command("verify", "--json", "-q", models / "base", models / "tuned", models / "best")

    data = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert data["kind"] == "optimal"
    assert data == verified(models, "best").to_plain() | {"created": data["created"]}


def test_the_command_refuses_what_the_server_refuses(models: Path, command: RunCommand, tmp_path: Path) -> None:
    adapter = write_best(models, tmp_path, bias="all")

    done = command("verify", models / "base", models / "tuned", adapter, "--server", "vllm")

    assert (done.code, done.out) == (1, "")
    assert "vLLM does not load this adapter: it contains biases" in done.err
    assert "messages.md#adapter-refused" in done.err


def test_hostile_names_stay_on_their_line(models: Path, command: RunCommand, tmp_path: Path) -> None:
    weights = made.best_factors(models / "base", models / "tuned", RANK)
    weights["base_model.model.\x1b[31mred\nAll is well.lora_A.weight"] = torch.ones(2, 2)

    adapter = write_best(models, tmp_path, weights=weights)
    done = command("verify", models / "base", models / "tuned", adapter)

    assert done.code == 0
    assert "\x1b" not in done.out
    assert not any(line.startswith("All is well") for line in done.out.splitlines())
