"""A candidate's model is what transformers would load from a folder with its numbers in it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import CheckpointError, JobError, UsageError
from deltarank.models import Edit, EditedWeights, load_model, read_piece, read_skeleton, stream_model
from refusals import refused
from tiny_architectures import DENSE, EXPERTS, logits, logits_of, write_pair

CPU = torch.device("cpu")
ALL = {**DENSE, **EXPERTS}


@pytest.fixture(scope="module", params=list(ALL))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(ALL[request.param], tmp_path_factory.mktemp("pair"))


def test_without_edits_it_is_what_transformers_loads(pair: tuple[Path, Path]) -> None:
    with open_checkpoint(pair[0]) as base:
        model = load_model(read_skeleton(base), EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)
        assert torch.equal(logits_of(model), logits(pair[0]))


def test_a_stack_is_edited_slice_by_slice(tmp_path: Path) -> None:
    base_folder, tuned_folder = write_pair(EXPERTS["gpt-oss"], tmp_path)
    name = "model.layers.0.mlp.experts.down_proj"
    truth = load_file(base_folder / "model.safetensors")[name]
    with open_checkpoint(base_folder) as base, open_checkpoint(tuned_folder) as tuned:
        second = next(each for each in pair_checkpoints(base, tuned).pairs if each.name == f"{name}[1]")
        made = EditedWeights(base, [Edit(second.base, lambda w: w * 2)], CPU)[name][...]
        assert torch.equal(read_piece(second.base, CPU), truth[1])

    assert torch.equal(made[1], 2 * truth[1])
    assert torch.equal(made[[0, 2, 3]], truth[[0, 2, 3]])


def test_a_rounded_edit_holds_what_a_file_of_that_type_would(llama: tuple[Path, Path]) -> None:
    with open_checkpoint(llama[0]) as base, open_checkpoint(llama[1]) as tuned:
        piece = pair_checkpoints(base, tuned).pairs[0].base
        made = EditedWeights(base, [Edit(piece, lambda w: w / 3, torch.bfloat16)], CPU)[piece.tensor][...]

    assert made.dtype == torch.float32
    assert torch.equal(made, made.bfloat16().float())


@pytest.mark.parametrize("name", ["llama", "tied llama", "qwen2", "gemma", "phi3", "gpt2", "gpt-oss"])
def test_streamed_it_predicts_the_same(tmp_path: Path, name: str) -> None:
    folder, _ = write_pair(ALL[name], tmp_path)
    with open_checkpoint(folder) as base:
        plan = read_skeleton(base)
        model, _ = stream_model(plan, EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)
        assert torch.allclose(logits_of(model), logits(folder), atol=1e-6)
        held = [weight for weight in model.parameters() if not weight.is_meta]
    assert held == []


def test_fused_experts_cannot_be_streamed(tmp_path: Path) -> None:
    folder, _ = write_pair(EXPERTS["mixtral"], tmp_path)
    with open_checkpoint(folder) as base, refused("cannot-stream", JobError):
        stream_model(read_skeleton(base), EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)


def test_a_folder_without_a_configuration_is_refused(llama: tuple[Path, Path], tmp_path: Path) -> None:
    save_file(load_file(llama[0] / "model.safetensors"), tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as base, refused("not-a-language-model", CheckpointError):
        read_skeleton(base)


def test_a_model_that_needs_its_own_program_is_refused_unless_asked_for(
    llama: tuple[Path, Path], tmp_path: Path
) -> None:
    save_file(load_file(llama[0] / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"model_type": "of_its_own", "auto_map": {"AutoConfig": "it.Config", "AutoModelForCausalLM": "it.Model"}}'
    )
    with open_checkpoint(tmp_path) as base, refused("remote-code", UsageError):
        read_skeleton(base)


def test_missing_tensors_are_not_made_up(llama: tuple[Path, Path], tmp_path: Path) -> None:
    weights = load_file(llama[0] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((llama[0] / "config.json").read_bytes())
    with open_checkpoint(tmp_path) as base, refused("weights-incomplete", CheckpointError) as caught:
        load_model(read_skeleton(base), EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)
    assert "up_proj" in caught.value.message


def test_a_quantised_checkpoint_is_refused(llama: tuple[Path, Path], tmp_path: Path) -> None:
    weights = load_file(llama[0] / "model.safetensors")
    weights = {name: w.to(torch.int8) for name, w in weights.items()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((llama[0] / "config.json").read_bytes())
    with open_checkpoint(tmp_path) as base, refused("quantised-model", JobError) as caught:
        read_skeleton(base)
    assert "I8" in caught.value.message
