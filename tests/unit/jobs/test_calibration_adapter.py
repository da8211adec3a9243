"""A calibration loads the plain adapter as PEFT does, and states what of it is plain extraction's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deltarank
from calibrations import calibration, score
from commands import RunCommand
from deltarank.architectures import silence_transformers
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.jobs.calibrate.evaluate import carries_all_matrices
from deltarank.jobs.calibrate.student import Student, add_tokens
from deltarank.jobs.calibrate.weights_kept import with_weights_kept
from deltarank.jobs.extract import ExtractedAdapter, ExtractJob, ExtractOptions, render_model_card
from deltarank.models import EditedWeights, Window, load_model, read_skeleton
from deltarank.results import AdapterBehaviour, WeightPlacement
from deltarank.runtime import ProgressListener
from tiny_architectures import DENSE, EXPERTS, VOCABULARY, Make, served, write_pair

CPU = torch.device("cpu")


def extract(pair: Path, **options: object) -> ExtractedAdapter:
    return deltarank.extract(pair / "base", pair / "finetune", output=pair / "adapter", rank=2, **options)  # type: ignore[arg-type]


def multiply_factors(adapter: Path, factor: float) -> None:
    """A and B, and nothing else of the file."""
    file = adapter / "adapter_model.safetensors"
    tensors = {name: each * (factor if "lora_" in name else 1) for name, each in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})


def measured_again(plain: ExtractedAdapter, pair: Path) -> ExtractedAdapter:
    with open_checkpoint(str(pair / "base")) as base, open_checkpoint(str(pair / "finetune")) as finetune:
        return with_weights_kept(plain, pair / "adapter", (base, finetune), "cpu", ProgressListener())


@pytest.mark.parametrize("make", [DENSE["llama"], EXPERTS["gpt-oss"]], ids=["llama", "gpt-oss"])
def test_it_is_loaded_as_peft_loads_it(make: Make, tmp_path: Path) -> None:
    """Of the fused experts of gpt-oss, the factors of one tensor are those of the other's base layer."""
    write_pair(make, tmp_path)
    extract(tmp_path, server="peft")
    with open_checkpoint(str(tmp_path / "base")) as base:
        model = load_model(read_skeleton(base), EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)
    student = Student(model, tmp_path / "adapter", CPU, None, WeightPlacement.WHOLE)

    [inputs], head = student.predict([Window((3, 4, 5, 6), (0, 1, 2))])
    with torch.no_grad():
        model = served(tmp_path / "base", tmp_path / "adapter").eval()
        expected = model(torch.tensor([[3, 4, 5, 6]])).logits[0, :3]
    torch.testing.assert_close(head.logits(inputs), expected, rtol=1e-4, atol=1e-5)
    student.save(tmp_path / "saved.safetensors")
    saved, plain = (load_file(tmp_path / each) for each in ("saved.safetensors", "adapter/adapter_model.safetensors"))
    assert saved.keys() == plain.keys()
    assert all(torch.equal(saved[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    "options", [{}, {"server": "peft"}, {"exclude": ["*mlp*"]}, {"include": ["*q_proj*"]}], ids=lambda each: str(each)
)
def test_the_plain_adapter_gives_up_nothing_of_the_weights(options: dict[str, object], tmp_path: Path) -> None:
    """Of the tensors that the budget counts, whatever --include and --exclude left out."""
    write_pair(DENSE["llama"], tmp_path)
    plain = extract(tmp_path, dtype="float32", **options)
    budget = measured_again(plain, tmp_path).budget
    assert 0 < budget.kept == pytest.approx(plain.budget.kept, abs=1e-6)
    assert budget.fitted == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "server"),
    [(DENSE["llama"], "portable"), (EXPERTS["gpt-oss"], "peft"), (EXPERTS["mixtral"], "peft")],
    ids=["llama", "gpt-oss", "mixtral"],
)
def test_the_losses_as_written_are_those_of_the_fitted_factors(make: Make, server: str, tmp_path: Path) -> None:
    """Twice the factors of plain extraction, L: ||D - 4 L||^2 = (1 + 8 k) ||D||^2, where L keeps k of ||D||^2."""
    write_pair(make, tmp_path)
    plain = extract(tmp_path, dtype="float32", server=server)
    multiply_factors(tmp_path / "adapter", 2)

    fitted = measured_again(plain, tmp_path)
    assert fitted.matrices
    assert [each.losses for each in fitted.matrices] == [each.losses for each in plain.matrices]
    for ours, theirs in zip(fitted.matrices, plain.matrices, strict=True):
        assert ours.written
        assert theirs.written
        kept = theirs.written.energy_kept
        assert ours.written.energy_kept == pytest.approx(-8 * kept, rel=1e-4)
        assert ours.written.relative_error == pytest.approx((1 + 8 * kept) ** 0.5, rel=1e-4)
        assert ours.written.cosine_distance == pytest.approx(theirs.written.cosine_distance, abs=1e-4)
        assert ours.written.mse == pytest.approx((1 + 8 * kept) * ours.energy / np.prod(ours.shape), rel=1e-4)
    (tmp_path / "deltarank.json").write_text(fitted.to_json())
    assert ExtractedAdapter.load(tmp_path).matrices == fitted.matrices


def test_the_losses_as_written_are_those_that_numpy_finds_in_float64(tmp_path: Path) -> None:
    write_pair(DENSE["llama"], tmp_path)
    plain = extract(tmp_path)
    multiply_factors(tmp_path / "adapter", 1.5)
    base, finetune, factors = (
        {name: each.double().numpy() for name, each in load_file(tmp_path / file).items()}
        for file in ("base/model.safetensors", "finetune/model.safetensors", "adapter/adapter_model.safetensors")
    )
    for matrix in measured_again(plain, tmp_path).matrices:
        a, b = (factors[f"base_model.model.{matrix.path}.lora_{each}.weight"] for each in "AB")
        delta, written = finetune[matrix.name] - base[matrix.name], matrix.written
        assert written
        error = delta - b @ a
        assert written.relative_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(delta), rel=1e-5)
        assert written.energy_kept == pytest.approx(1 - np.vdot(error, error) / np.vdot(delta, delta), rel=1e-5)
        assert written.mse == pytest.approx((error**2).mean(), rel=1e-5)
        cosine = np.vdot(delta, b @ a) / np.linalg.norm(delta) / np.linalg.norm(b @ a)
        assert written.cosine_distance == pytest.approx(1 - cosine, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "largest", "carries"),
    [
        ({}, 1.0, True),
        ({"exclude": ["*lm_head*"]}, 1.0, True),
        ({"exclude": ["*mlp*"]}, 1.0, False),
        ({"server": "peft"}, 1.0, False),
        ({}, 1e30, False),
    ],
)
def test_other_ranks_are_compared_where_they_have_the_same_matrices(
    options: dict[str, object], largest: float, carries: bool, tmp_path: Path
) -> None:
    """Not where --exclude left matrices out, or where one failed because the square of a number overflows."""
    write_pair(DENSE["llama"], tmp_path)
    weights = load_file(tmp_path / "finetune" / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = largest
    save_file(weights, tmp_path / "finetune" / "model.safetensors", {"format": "pt"})
    plain = extract(tmp_path, **options)
    with open_checkpoint(str(tmp_path / "base")) as base, open_checkpoint(str(tmp_path / "finetune")) as finetune:
        plan = ExtractJob(base, finetune, ExtractOptions(rank=2, **options)).plan  # type: ignore[arg-type]
        assert carries_all_matrices(plan, plain, pair_checkpoints(base, finetune)) is carries


def test_added_tokens_that_the_adapter_carries_are_added_to_the_base(tmp_path: Path) -> None:
    """PEFT loads embeddings and a head with more rows than the base's only then."""
    write_pair(DENSE["llama"], tmp_path)
    with silence_transformers():
        finetune = AutoModelForCausalLM.from_pretrained(tmp_path / "finetune")
        finetune.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
        finetune.save_pretrained(tmp_path / "finetune")
    extract(tmp_path, server="peft")
    with open_checkpoint(str(tmp_path / "base")) as base, open_checkpoint(str(tmp_path / "finetune")) as after:
        plan = ExtractJob(base, after, ExtractOptions(rank=2, server="peft")).plan
        model = load_model(read_skeleton(base), EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)
    add_tokens(model, plan, VOCABULARY + 5)
    student = Student(model, tmp_path / "adapter", CPU, None, WeightPlacement.WHOLE)

    [inputs], head = student.predict([Window((3, 4, VOCABULARY + 2, 6), (0, 1, 2))])
    logits = head.logits(inputs)
    assert logits.shape == (3, VOCABULARY + 5)
    assert bool(logits.isfinite().all())


def test_verify_does_not_say_that_a_calibrated_adapter_keeps_less_than_nothing(
    command: RunCommand, tmp_path: Path
) -> None:
    write_pair(DENSE["llama"], tmp_path)
    extract(tmp_path, dtype="float32")
    multiply_factors(tmp_path / "adapter", 2)
    metadata = tmp_path / "adapter" / "deltarank.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "calibration": {"method": "kl_distillation"}}))

    ran = command("verify", tmp_path / "base", tmp_path / "finetune", tmp_path / "adapter")
    said = " ".join(ran.out.split())
    assert "Of the change in the weights it keeps nothing. In the matrices that it changes, the best LoRA" in said
    assert said.count("keeps nothing") == 1
    assert "mlp.down_proj nothing" in said
    assert "under 0" not in said
    assert "scaled by" not in said, "a length that fits predictions is no wrong scale"


def test_the_card_says_each_figure_once_and_draws_no_bar_over_the_edge(tmp_path: Path) -> None:
    """Of factors that lead away from the weights, which give up more than the whole change."""
    write_pair(DENSE["llama"], tmp_path)
    plain = extract(tmp_path, dtype="float32")
    multiply_factors(tmp_path / "adapter", 2)
    reached = calibration(score(), replace(score(), documents=48, groups=16))
    card = render_model_card(replace(measured_again(plain, tmp_path), calibration=reached))

    assert card.count(reached.distances) == 1
    assert card.count("0.2 | 0.18 to 0.22 | 60 % | 55 to 65 % |") == 2
    assert "48 in 16 groups" in card
    assert "In the weights: it keeps" not in card
    bars = [line for line in card.splitlines() if line.endswith(" %") and "  " in line]
    widest = next(line for line in bars if line.startswith("given up to fit the predictions"))
    assert max(line.count("█") for line in bars) == widest.count("█") == 40
    kept = next(line for line in bars if line.startswith("kept "))
    assert kept.index("-") == widest.index("█") + 42
    assert "What is kept is negative: the difference that is left has" in card


def test_a_card_with_two_distances_says_why_they_differ(tmp_path: Path) -> None:
    """That of the calibration, and that of `outputs` on another text."""
    write_pair(DENSE["llama"], tmp_path)
    measured = AdapterBehaviour("notes.txt", own=False, tokens=100, documents=2, kld=0.3)
    reached = calibration(score(), score())
    card = render_model_card(replace(extract(tmp_path), calibration=reached, behaviour=measured))

    assert "on notes.txt: 0.3 nats per token from the finetune" in card
    assert (
        "In its calibration it was 0.2 nats per token from the finetune, on documents that it was not fitted to "
        "(below): the distance depends on the text." in card
    )
    assert reached.distances not in card, "its figures are in the table"
