"""The lab as a folder: whole or absent, and used again when it is the one asked for. Trained for real, but tiny."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deltarank.demo import Lab
from deltarank.demo import build as _build
from deltarank.demo.lab import build_by
from deltarank.demo.recipe import Course, Recipe
from deltarank.demo.steps import OnStep
from deltarank.errors import OutputError
from refusals import refused

Built = tuple[Lab, list[str]]

TINY = Recipe(
    hidden=16,
    intermediate=32,
    layers=1,
    heads=2,
    length=24,
    text_limit=200_000,
    loss_windows=4,
    lora_rank=2,
    lora_alpha=4,
    base=Course(steps=4, peak_rate=1e-2, batch=2),
    lora=Course(steps=3, peak_rate=1e-2, batch=2),
    full=Course(steps=3, peak_rate=1e-2, batch=2),
    other=Course(steps=3, peak_rate=1e-2, batch=2),
)


def build(folder: Path, *, seed: int = 0, recipe: Recipe = TINY, force: bool = False) -> Built:
    said: list[str] = []
    return build_by(recipe, folder, seed=seed, say=said.append, progress=False, force=force), said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("demo") / "lab")


@pytest.fixture
def lab_copy(made: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0].folder, tmp_path / "lab"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def test_the_lab_has_a_base_its_finetunes_and_an_adapter_and_nothing_else(made: Built) -> None:
    lab, _ = made
    base = weights(lab.base)

    for folder in (lab.lora, lab.full, lab.other, lab.merge):
        tuned = weights(folder)
        assert {name: w.shape for name, w in tuned.items()} == {name: w.shape for name, w in base.items()}
        assert any(not torch.equal(tuned[name], base[name]) for name in base)
        assert (folder / "config.json").is_file()
        assert (folder / "tokenizer.json").is_file()
    assert {w.dtype for w in base.values()} == {torch.bfloat16}
    assert lab.trainings[0].loss_after < lab.trainings[0].loss_before
    config = json.loads((lab.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (TINY.lora_rank, "../base")
    assert [path.name for path in lab.folder.parent.iterdir()] == ["lab"]


def test_the_lora_s_delta_has_its_rank_but_for_rounding(made: Built) -> None:
    lab, _ = made
    base, tuned = weights(lab.base), weights(lab.lora)
    name = "model.layers.0.mlp.down_proj.weight"
    energy = torch.linalg.svdvals(tuned[name].double() - base[name].double()) ** 2

    assert energy[: TINY.lora_rank].sum() / energy.sum() > 0.95


def test_the_merge_is_the_mean_of_its_parents(made: Built) -> None:
    lab, _ = made
    one, two, merge = weights(lab.full), weights(lab.other), weights(lab.merge)

    for name, found in merge.items():
        expected = (one[name].float() + two[name].float()) / 2
        torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=1e-6)


def test_progress_is_reported(made: Built) -> None:
    lab, said = made

    assert [line.split(":")[0] for line in said if " of 4" in line] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert [training.name for training in lab.trainings] == ["base", "lora", "full", "other", "merge"]
    assert all(line == line.rstrip() for line in said)


def test_a_finished_lab_is_used_again(lab_copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in lab_copy.rglob("*")}
    lab, said = build(lab_copy)

    assert lab.reused
    assert "trained earlier" in said[0]
    assert {path: path.stat().st_mtime_ns for path in lab_copy.rglob("*")} == before


def test_the_same_seed_gives_the_same_weights(made: Built, tmp_path: Path) -> None:
    again, _ = build(tmp_path / "again")

    for name in ("base", "lora", "full", "merge"):
        one, two = weights(made[0].folder / name), weights(again.folder / name)
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_building_leaves_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(tmp_path / "lab")

    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_lab_of_another_seed_is_not_replaced_unasked(lab_copy: Path) -> None:
    with refused("output-exists", OutputError, match="another seed"):
        build(lab_copy, seed=1)

    assert (lab_copy / "lab.json").is_file()


def test_force_replaces_it(lab_copy: Path) -> None:
    lab, _ = build(lab_copy, seed=1, force=True)

    assert (lab.seed, lab.reused) == (1, False)
    assert json.loads((lab_copy / "lab.json").read_text())["made_by"]["seed"] == 1


@pytest.mark.parametrize("lost", ["full/model.safetensors", "texts/code.txt", "adapter/adapter_config.json"])
def test_a_lab_without_a_file_is_refused(lab_copy: Path, lost: str) -> None:
    (lab_copy / lost).unlink()

    with pytest.raises(OutputError, match="files are missing"):
        build(lab_copy)


def test_a_folder_of_something_else_is_left_alone_even_by_force(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "thesis.txt").write_text("years of work")

    with pytest.raises(OutputError, match="does not contain models of the demo"):
        build(tmp_path / "lab", force=True)
    assert (tmp_path / "lab" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_a_lab_is_whole_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def fail(self: object) -> None:
        raise failure

    monkeypatch.setattr(_build._LabBuilder, "make_merge", fail)
    with pytest.raises(failure):
        build(tmp_path / "lab")

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_build._LabBuilder, "make_finetunes", fail)
    with refused("output-unwritable", OutputError, match="No space left on device"):
        build(tmp_path / "lab")

    assert list(tmp_path.iterdir()) == []


def test_a_training_that_fails_ends_the_others(made: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they train at the same time; the failure is passed on, and not what the others end with."""

    def train(model: object, tokens: object, course: Course, *, on_step: OnStep, **_: object) -> float:
        if course is TINY.full:
            raise ZeroDivisionError
        if course is TINY.base:
            return 0.0
        while True:
            on_step(1.0)

    monkeypatch.setattr(_build, "train", train)
    with pytest.raises(ZeroDivisionError):
        build(tmp_path / "lab", recipe=TINY)

    assert list(tmp_path.iterdir()) == []
