"""Where the weights of a calibration are: whatever takes less memory gives the same gradients."""

from pathlib import Path

import pytest
import torch

import deltarank
from deltarank.checkpoints import open_checkpoint
from deltarank.jobs.calibrate.placement import WeightPlacement, load_placed
from deltarank.jobs.calibrate.student import Student
from deltarank.models import Window, read_skeleton
from tiny_architectures import DENSE, EXPERTS, HEADS, architecture, write_pair

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


def gradients_of(student: Student) -> dict[str, torch.Tensor]:
    inputs, head = student.predict_with_gradient(WINDOWS, in_bfloat16=False)
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


def test_a_streamed_model_holds_no_weights_after_a_pass_and_its_gradient(pair: Path) -> None:
    student = student_of(pair, WeightPlacement.STREAMED)
    gradients_of(student)
    assert all(each.is_meta for name, each in student.model.named_parameters() if name not in student.parameters)
