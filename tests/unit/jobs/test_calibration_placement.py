"""Where the weights of a calibration are: whatever takes less memory gives the same gradients."""

import itertools
import json
import math
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import deltarank
from deltarank.checkpoints import open_checkpoint
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.jobs.calibrate.placement import load_placed
from deltarank.jobs.calibrate.student import Student
from deltarank.models import EditedWeights, Predictor, Window, load_model, read_skeleton
from deltarank.results import WeightPlacement, size
from refusals import refused
from tiny_architectures import DENSE, EXPERTS, HEADS, SIZES, architecture, write_pair

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT

MAKERS = {**DENSE, **EXPERTS, "gemma2": architecture("gemma2", **HEADS)}
WINDOWS = [Window(tuple(range(5, 17)), tuple(range(3, 11))), Window((7, 8, 9, 20), (1, 2))]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["tied llama", "gemma2", "gpt-oss"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, finetune, adapter; in bfloat16."""
    home = tmp_path_factory.mktemp(request.param)
    write_pair(MAKERS[request.param], home, dtype=torch.bfloat16)
    deltarank.extract(home / "base", home / "finetune", output=home / "adapter", rank=2, dtype="float32")
    return home


def student_of(home: Path, placement: WeightPlacement) -> Student:
    checkpoint = open_checkpoint(home / "base")
    model, head = load_placed(read_skeleton(checkpoint), checkpoint, placement, CPU)
    return Student(model, home / "adapter", CPU, head, placement)


def gradients_of(student: Student, *, in_bfloat16: bool = False) -> dict[str, torch.Tensor]:
    inputs, head = student.predict_with_gradient(WINDOWS, in_bfloat16=in_bfloat16)
    head.logits(torch.cat(inputs)).logsumexp(-1).sum().backward()
    return {name: each.grad for name, each in student.parameters.items()}


def test_gradients_are_those_of_the_whole_model(pair: Path) -> None:
    whole = gradients_of(student_of(pair, WeightPlacement.WHOLE))
    assert any(bool(each.any()) for each in whole.values())
    for placement in (WeightPlacement.RECOMPUTED, WeightPlacement.STORED, WeightPlacement.STREAMED):
        ours = gradients_of(student_of(pair, placement))
        assert whole.keys() == ours.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


def test_products_in_bfloat16_with_attention_in_float32_give_nearly_the_same_gradient(pair: Path) -> None:
    student = student_of(pair, WeightPlacement.WHOLE)
    exact = torch.cat([each.flatten() for each in gradients_of(student).values() if each is not None])
    for each in student.parameters.values():
        each.grad = None
    rounded = gradients_of(student, in_bfloat16=True).values()
    rounded = torch.cat([each.flatten() for each in rounded if each is not None])
    assert not torch.equal(rounded, exact)
    assert torch.nn.functional.cosine_similarity(rounded, exact, dim=0) > 0.99


def test_a_streamed_model_holds_no_weights_after_a_pass_and_its_gradient(pair: Path) -> None:
    student = student_of(pair, WeightPlacement.STREAMED)
    gradients_of(student)
    assert all(each.is_meta for name, each in student.model.named_parameters() if name not in student.parameters)


def test_a_float32_tensor_that_stays_in_memory_takes_part_in_a_gradient_after_a_pass_without(tmp_path: Path) -> None:
    """Such as norms beside matrices in bfloat16: converting them makes no new tensor."""
    write_pair(MAKERS["tied llama"], tmp_path, dtype=torch.float32)
    deltarank.extract(tmp_path / "base", tmp_path / "finetune", output=tmp_path / "adapter", rank=2, dtype="float32")
    student = student_of(tmp_path, WeightPlacement.STORED)
    student.predict(WINDOWS)
    assert any(bool(each.any()) for each in gradients_of(student).values())


def test_where_memory_is_short_large_blocks_are_freed_at_once(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    checkpoint = open_checkpoint(pair / "base")
    for placement in WeightPlacement:
        monkeypatch.setattr(
            "deltarank.jobs.calibrate.placement.free_large_blocks_at_once",
            lambda placement=placement: freed.append(placement.value),
        )
        load_placed(read_skeleton(checkpoint), checkpoint, placement, CPU)
    assert freed == ["recomputed", "stored", "streamed"]


def write_without_weights(folder: Path, **config: int) -> None:
    """A checkpoint whose weights are a hole in a file: it has the size of real ones and takes no space."""
    settings = AutoConfig.for_model("llama", **config)
    settings.save_pretrained(folder)
    tokenizer(Recipe()).save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in AutoModelForCausalLM.from_config(settings).state_dict().items()}
    ends = list(itertools.accumulate(2 * math.prod(shape) for shape in shapes.values()))
    header = json.dumps(
        {
            name: {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
            for (name, shape), start, end in zip(shapes.items(), [0, *ends], ends, strict=False)
        }
    ).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + ends[-1])


def plans(home: Path, monkeypatch: pytest.MonkeyPatch, memories: Sequence[float]) -> list[deltarank.CalibrationPlan]:
    made = []
    for memory in memories:
        monkeypatch.setattr("deltarank.jobs.calibrate.job.available_memory", lambda _, memory=memory: int(memory))
        made.append(deltarank.plan_calibration(home / "base", home / "finetune", rank=8, calibrate=["own"]))
    return made


@pytest.mark.skipif(sys.platform == "win32", reason="no files with holes by default")
class TestChoice:
    def test_the_less_memory_the_more_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("base", "finetune"):
            write_without_weights(
                tmp_path / name, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, vocab_size=32_000
            )
        memories = (64e9, 10e9, 7e9, 5e9)
        made = plans(tmp_path, monkeypatch, memories)
        assert [plan.placement for plan in made] == list(WeightPlacement)
        assert [plan.seconds for plan in made] == sorted(plan.seconds for plan in made)
        assert all(plan.memory <= 0.85 * memory for plan, memory in zip(made, memories, strict=True))
        assert f"{size(made[-1].memory)} of memory (5 GB is available)" in str(made[-1])
        monkeypatch.setattr("deltarank.jobs.calibrate.job.available_memory", lambda _: 2_000_000_000)
        with refused("calibration-memory", match="one layer of the weights at a time"):
            deltarank.extract_calibrated(tmp_path / "base", tmp_path / "finetune", output=tmp_path / "out", rank=8)
        assert not (tmp_path / "out.calibrating").exists()

    @pytest.mark.slow
    def test_a_pair_of_70_billion_parameters(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("base", "finetune"):
            write_without_weights(
                tmp_path / name,
                hidden_size=8192,
                intermediate_size=28672,
                num_hidden_layers=80,
                num_attention_heads=64,
                num_key_value_heads=8,
                vocab_size=128_256,
            )
        [plan] = plans(tmp_path, monkeypatch, [80e9])
        assert plan.placement is WeightPlacement.STREAMED
        assert plan.memory < 24e9
        assert plan.disk_bytes < 20e9


@pytest.mark.parametrize(
    ("kind", "config", "changes"),
    [("llama", {}, False), ("granite", {"logits_scaling": 8.0}, True), ("cohere", {"logit_scale": 0.25}, True)],
)
def test_logits_are_planned_for_where_a_scale_follows_the_head(
    kind: str, config: dict[str, float], changes: bool, tmp_path: Path
) -> None:
    """As predictions they are stored, in place of the inputs of the head."""
    write_pair(architecture(kind, **SIZES, **config), tmp_path)
    with open_checkpoint(tmp_path / "base") as checkpoint:
        skeleton = read_skeleton(checkpoint)
        model = load_model(skeleton, EditedWeights(checkpoint, [], CPU), dtype=torch.float32, device=CPU)
    predictor = Predictor(model, CPU)
    predictor.head_inputs(WINDOWS)
    assert skeleton.changes_logits is changes is (predictor.head.weight is None)
