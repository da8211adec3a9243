"""Which base a finetune came from: found where the distances tell, and said where they do not."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import MATRICES, base_weights, full_finetune, merged_lora, write

import deltarank
from commands import RunCommand
from deltarank.errors import CheckpointError, JobError, UsageError
from deltarank.results import BaseKind, VerdictKind
from refusals import refused


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A base, what came from it, and what did not."""
    home = tmp_path_factory.mktemp("models")
    base = base_weights()
    stage = full_finetune(base, seed=4)
    sibling = full_finetune(base, seed=5)
    nudged = {name: w * 1.0001 if "norm" not in name else w for name, w in base.items()}
    made = {
        "base": base,
        "stage": stage,
        "mine": full_finetune(stage, seed=6, scale=0.002),
        "full": full_finetune(base),
        "sibling": sibling,
        "lora": merged_lora(base, 3),
        "few": {name: w + (0.01 if "layers.1.mlp.up" in name else 0.0) for name, w in base.items()},
        "merge": {name: (stage[name] + sibling[name]) / 2 for name in base},
        "unrelated": base_weights(seed=77),
        "nudged": nudged,
        "wide": {name: torch.zeros(w.shape[0], 2 * w.shape[-1]) for name, w in base.items() if w.ndim == 2},
        "turned": {name: w.T if "_proj" in name else w for name, w in base.items()},
        "broken": {name: w * float("nan") for name, w in base.items()},
    }
    folders = {name: write(home / name, weights, dtype=torch.float32) for name, weights in made.items()}
    folders["copy"] = shutil.copytree(folders["base"], home / "copy")
    return folders


@pytest.mark.parametrize(
    ("candidates", "finetune", "found"),
    [
        (("unrelated", "base", "wide"), "full", "base"),
        (("sibling", "base"), "full", "base"),
        (("base", "stage", "sibling"), "mine", "stage"),
        (("base", "lora"), "few", "base"),
        (("base",), "lora", "base"),
        (("full", "sibling", "base"), "lora", "base"),
    ],
)
def test_the_base_is_found(candidates: tuple[str, ...], finetune: str, found: str, folders: Mapping[str, Path]) -> None:
    for seed in range(4):
        choice = deltarank.which_base(folders[finetune], [folders[name] for name in candidates], seed=seed)

        assert choice.kind is BaseKind.FOUND
        assert choice.base is not None
        assert choice.base.reference.ref == str(folders[found])
        verb = "is nearest to" if len(candidates) > 1 else "differs from"
        assert choice.sentence.startswith(f"{finetune} {verb} {folders[found]}")


@pytest.mark.parametrize(
    ("candidates", "finetune"),
    [(("base", "copy"), "full"), (("stage", "sibling"), "merge"), (("copy", "base"), "lora")],
)
def test_candidates_that_are_equally_near_are_too_close(
    candidates: tuple[str, ...], finetune: str, folders: Mapping[str, Path]
) -> None:
    choice = deltarank.which_base(folders[finetune], [folders[name] for name in candidates], matrices=2)

    assert choice.kind is BaseKind.TOO_CLOSE
    assert choice.base is None
    assert "Too close to tell" in choice.sentence
    assert all(str(folders[name]) in choice.sentence for name in candidates)
    assert ("copies of one model" in choice.sentence) == ("copy" in candidates)
    assert choice.matrices == MATRICES  # four times as many were read before it was given up


@pytest.mark.parametrize("candidates", [("unrelated",), ("unrelated", "wide")])
def test_unrelated_candidates_are_no_base(candidates: tuple[str, ...], folders: Mapping[str, Path]) -> None:
    choice = deltarank.which_base(folders["full"], [folders[name] for name in candidates])

    assert choice.kind is BaseKind.NONE
    assert choice.base is None
    assert "as unrelated models do" in choice.sentence
    assert choice.candidates[0].relative_norm == pytest.approx(2**0.5, rel=0.1)


def test_the_figures_are_numpy_s(folders: Mapping[str, Path]) -> None:
    choice = deltarank.which_base(folders["full"], [folders["base"], folders["unrelated"]], matrices=3)
    after = load_file(folders["full"] / "model.safetensors")
    for candidate, name in zip(choice.candidates, ("base", "unrelated"), strict=True):
        before = load_file(folders[name] / "model.safetensors")
        pairs = {n: (before[n].double().numpy(), after[n].double().numpy()) for n in candidate.norms}
        norms = {n: np.linalg.norm(w - w0) / np.linalg.norm(w0) for n, (w0, w) in pairs.items()}
        energies = [((w - w0) ** 2).sum() for w0, w in pairs.values()], [(w0**2).sum() for w0, _ in pairs.values()]

        assert len(norms) == 3
        assert candidate.norms == pytest.approx(norms, rel=1e-6)
        assert candidate.relative_norm == pytest.approx(np.sqrt(sum(energies[0]) / sum(energies[1])), rel=1e-6)


def test_a_seed_draws_the_same_matrices_of_every_module_and_another_seed_others(folders: Mapping[str, Path]) -> None:
    def drawn(seed: int) -> list[str]:
        choice = deltarank.which_base(folders["full"], [folders["base"]], matrices=4, seed=seed)
        return list(choice.candidates[0].norms)

    assert drawn(1) == drawn(1)
    assert len({tuple(sorted(drawn(seed))) for seed in range(6)}) > 1
    assert {name.split(".", 3)[3] for name in drawn(1)} == {
        f"{module}.weight" for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    }


def test_a_candidate_that_cannot_be_compared_has_a_reason_and_the_others_are_compared(
    folders: Mapping[str, Path], tmp_path: Path
) -> None:
    candidates = [tmp_path / "nowhere", folders["wide"], folders["broken"], folders["base"], folders["full"]]
    choice = deltarank.which_base(folders["full"], candidates)
    reasons = [candidate.reason or "" for candidate in choice.candidates]

    assert choice.kind is BaseKind.FOUND
    assert choice.base == choice.candidates[3]
    assert "nowhere" in reasons[0]
    assert "differ in shape" in reasons[1]
    assert "NaN" in reasons[2]
    assert "the same files" in reasons[4]


def test_the_cure_of_a_candidate_that_is_stored_transposed_names_that(folders: Mapping[str, Path]) -> None:
    """Conv1D's layout against that of Linear: it may well be the base."""
    alone, beside = [folders["turned"]], [folders["turned"], folders["unrelated"], folders["wide"]]
    with refused("no-candidate", JobError, match="the shape of the base's transpose") as caught:
        deltarank.which_base(folders["full"], alone)
    choice = deltarank.which_base(folders["full"], beside)

    assert caught.value.cure.startswith("Transpose the linear layers of one of the two")
    assert choice.kind is BaseKind.NONE
    assert "is not the base of full" in choice.sentence
    assert f"{folders['turned']} could not be compared: 4 of 4 matrices that are not square" in choice.sentence
    assert "Transpose the linear layers" in choice.sentence
    assert "wide" not in choice.sentence


def test_invalid_arguments_are_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        deltarank.which_base(folders["full"], [])
    with pytest.raises(UsageError):
        deltarank.which_base(folders["full"], str(folders["base"]))  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        deltarank.which_base(folders["full"], [folders["base"]], matrices=0)
    with pytest.raises(CheckpointError):
        deltarank.which_base(tmp_path / "nowhere", [folders["base"]])
    with refused("no-candidate", JobError, match="No candidate can be compared"):
        deltarank.which_base(folders["full"], [folders["wide"], tmp_path / "nowhere"])


def test_the_command_prints_candidates_and_a_sentence(folders: Mapping[str, Path], command: RunCommand) -> None:
    refs = [folders[name] for name in ("full", "unrelated", "base", "wide")]
    done = command("which-base", *refs)

    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == f"finetune: {refs[0]}"
    assert lines[3].split()[0] == str(refs[2])  # the nearest first
    assert "not compared" in lines[5]
    sentence = "".join(lines[7:]).replace(" ", "")  # wrapped, with a long path broken in two
    assert sentence.startswith(f"full is nearest to {refs[2]}: they differ by ".replace(" ", ""))


def test_the_command_prints_json_alone(folders: Mapping[str, Path], command: RunCommand) -> None:
    refs = [folders[name] for name in ("full", "unrelated", "base")]
    done = command("which-base", *refs, "--json", "-q", "--include", "*mlp*")
    data = json.loads(done.out)

    assert (done.code, done.err) == (0, "")
    assert data["base"] == str(refs[2])
    assert data["kind"] == "found"
    assert [each["ref"] for each in data["candidates"]] == [str(refs[1]), str(refs[2])]
    assert all("mlp" in name for name in data["candidates"][0]["matrices"])


def test_the_margin_is_stated_with_a_caveat_where_a_sibling_is_nearly_as_near(folders: Mapping[str, Path]) -> None:
    def said(*candidates: str) -> str:
        return deltarank.which_base(folders["full"], [folders[name] for name in candidates]).sentence

    far, near = said("base", "unrelated"), said("base", "sibling")
    assert far.startswith(f"full is nearest to {folders['base']}: they differ by ")
    assert " times as much." in far
    assert "sibling" not in far.replace(str(folders["base"]), "")
    assert f"The next candidate, {folders['sibling']}, is nearly as near: it differs by " in near
    assert "times as much. A finetune is about as near to siblings and to later stages of its base" in near
    assert "and from other finetunes of this base." in said("base")


def test_a_lora_larger_than_the_weights_is_not_unrelated(tmp_path: Path) -> None:
    """An exact change of rank 3 with twice the norm of the weights: the weights are still alike."""
    base = base_weights()
    tuned = merged_lora(base, 3)
    for name in (name for name in base if "_proj" in name):
        delta = tuned[name] - base[name]
        tuned[name] = base[name] + 2 * base[name].norm() / delta.norm() * delta
    paths = [write(tmp_path / name, weights, dtype=torch.float32) for name, weights in (("a", base), ("b", tuned))]
    choice = deltarank.which_base(paths[1], [paths[0], write(tmp_path / "other", base_weights(seed=77))])
    results = deltarank.compare(*paths, ranks=[8])

    assert choice.kind is BaseKind.FOUND
    assert choice.base is not None
    assert choice.base.reference.ref == str(paths[0]) or choice.base.relative_norm == pytest.approx(2.0, rel=0.01)
    assert results.verdict.kind is VerdictKind.MERGED_LORA
    assert not any("is this the base" in note for note in results.notes)
