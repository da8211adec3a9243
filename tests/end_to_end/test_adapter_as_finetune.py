"""A LoRA as the finetune gives the numbers of the checkpoint that PEFT merges it into, without that checkpoint."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltarank
import peft_adapters as made
import tiny_architectures as architectures
from deltarank.errors import AdapterError, CheckpointError
from deltarank.results import Outcome, Results
from deltarank.runtime import DeltaReader
from hub import FakeHub, client_environment
from refusals import refused

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_base(made.llama, tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.train(base, tmp_path_factory.mktemp("lora") / "adapter", r=3, target_modules=TARGETS)


@pytest.fixture
def own(adapter: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def both(folder: Path, base: Path, **config: Any) -> tuple[Results, Results]:
    """The results from the adapter's folder, and from PEFT's own merge in float32."""
    adapter = made.train(base, folder / "adapter", steps=2, **config)
    merged = made.merge(base, adapter, folder / "merged")
    return deltarank.compare(base, adapter), deltarank.compare(base, merged)


def assert_equal(adapted: Results, merged: Results) -> None:
    """Up to float32: PEFT's merge rounds W0 + L once, to 2^-24 of W0, and so is off by about 1e-5 of L here."""
    pairs = zip(*(sorted(run.matrices, key=lambda m: m.name) for run in (adapted, merged)), strict=True)
    for ours, theirs in pairs:
        assert (ours.name, ours.outcome) == (theirs.name, theirs.outcome)
        if ours.outcome is not Outcome.MEASURED:
            continue
        for field in ("relative_norm", "mean_abs", "frobenius", "base_frobenius", "stable_rank", "effective_rank"):
            assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=1e-4), (ours.name, field)
        for one, other in zip(ours.losses, theirs.losses, strict=True):
            assert one.relative_error == pytest.approx(other.relative_error, rel=1e-3, abs=1e-4), (ours.name, one.rank)
    left_out = zip(*(sorted(run.skipped, key=lambda s: s.name) for run in (adapted, merged)), strict=True)
    for one, other in left_out:
        assert (one.name, one.outcome) == (other.name, other.outcome)
        assert one.energy == pytest.approx(other.energy, rel=1e-4, abs=1e-12), one.name


@pytest.mark.parametrize(
    "config",
    [
        {
            "r": 2,
            "target_modules": TARGETS,
            "use_rslora": True,
            "rank_pattern": {"layers.0.self_attn.q_proj": 5},
            "alpha_pattern": {"down_proj": 32},
            "modules_to_save": ["lm_head"],
        },
        pytest.param({"r": 3, "lora_alpha": 8, "target_modules": TARGETS}, marks=pytest.mark.slow),
        pytest.param({"r": 2, "target_modules": "all-linear", "modules_to_save": ["lm_head"]}, marks=pytest.mark.slow),
        pytest.param({"r": 2, "target_modules": ["q_proj", "embed_tokens"]}, marks=pytest.mark.slow),
    ],
    ids=["everything", "plain", "head saved", "embedding"],
)
def test_an_adapter_equals_its_merge(base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    assert_equal(*both(tmp_path, base, **config))


@pytest.mark.slow
def test_transposed_layers_equal_their_merge(tmp_path: Path) -> None:
    """GPT-2's Conv1D; its c_proj is square."""
    base = made.write_base(made.gpt2, tmp_path / "base")

    assert_equal(*both(tmp_path, base, r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))


def test_experts_that_share_a_tensor_equal_their_merge(tmp_path: Path) -> None:
    """gpt-oss: LoRAs on bare parameters, a slice of the factors for each expert."""
    base, _ = architectures.write_pair(architectures.EXPERTS["gpt-oss"], tmp_path, steps=1)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

    adapted, merged = both(tmp_path / "lora", base, r=2, target_modules=["q_proj"], target_parameters=parameters)

    assert_equal(adapted, merged)
    experts = [m for m in adapted.matrices if "experts" in m.name]
    assert len(experts) == 16
    assert {(m.solver, m.signal_rank) for m in experts} == {("factors", 2)}


def test_the_rank_is_known_without_a_solver(base: Path, adapter: Path) -> None:
    adapted = deltarank.compare(base, adapter)
    touched = [m for m in adapted.matrices if m.outcome is Outcome.MEASURED]

    assert {m.solver for m in touched} == {"factors"}
    assert {m.signal_rank for m in touched} == {3}
    assert {m.rounding_floor for m in touched} == {0.0}
    assert all(m.loss(8).relative_error == 0.0 for m in touched)
    assert adapted.verdict.kind == "adapter"
    assert adapted.verdict.signal_rank == 3
    assert "This is a LoRA adapter of rank 3 on the base." in adapted.verdict.sentences
    assert not any("merged" in sentence for sentence in adapted.verdict.sentences)
    assert any("the base with a LoRA on 6 tensors" in note for note in adapted.notes)


@pytest.mark.parametrize("ranks", [{}, {"layers.0.self_attn.q_proj": 20}], ids=["one rank", "two, one above half"])
def test_an_adapter_is_called_one_whatever_its_norm_and_ranks(
    base: Path, tmp_path: Path, ranks: dict[str, int]
) -> None:
    own = made.train(base, tmp_path / "adapter", r=3, lora_alpha=3000, target_modules=TARGETS, rank_pattern=ranks)
    verdict = deltarank.compare(base, own).verdict

    assert verdict.kind == "adapter"
    assert f"This is a LoRA adapter of {'ranks 3 to 20' if ranks else 'rank 3'} on the base." in verdict.sentences


def test_no_note_claims_rounding_that_the_delta_of_an_adapter_does_not_contain(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """The adapter is added in float32 to the numbers of a base in bfloat16."""
    half = made.write_checkpoint(tmp_path / "half", {n: t.bfloat16() for n, t in made.tensors(base).items()}, like=base)
    for notes in (deltarank.compare(half, adapter).notes, deltarank.verify(half, adapter, adapter).notes):
        assert any("the base with a LoRA on 6 tensors" in note for note in notes)
        assert not any("rounding" in note for note in notes)


def test_the_matrix_is_not_formed(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formed: list[str] = []
    read = DeltaReader.read
    monkeypatch.setattr(DeltaReader, "read", lambda self, pair: formed.append(pair.name) or read(self, pair))

    deltarank.compare(base, adapter, include=["*q_proj*"])

    assert formed == []


@pytest.mark.slow
def test_a_rank_near_the_side_is_solved_like_any_other(base: Path, tmp_path: Path) -> None:
    adapted, merged = both(tmp_path, base, r=24, target_modules=["q_proj"])

    assert "factors" not in {m.solver for m in adapted.matrices}
    assert_equal(adapted, merged)


def test_an_adapter_over_a_base_in_bfloat16_is_measured_before_it_is_rounded(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(base / "model.safetensors").items()}
    half = made.write_checkpoint(tmp_path / "half", halves, base)

    one, other = deltarank.compare(base, adapter), deltarank.compare(half, adapter)

    assert [m.frobenius for m in one.matrices] == [m.frobenius for m in other.matrices]


def test_what_is_extracted_from_an_adapter_is_that_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    """And the verification of an adapter against itself shows no loss."""
    deltarank.extract(base, adapter, output=tmp_path / "again", rank=8, dtype="float32", server="peft")
    same = deltarank.verify(base, adapter, tmp_path / "again")
    itself = deltarank.verify(base, adapter, adapter)

    assert same.touched.share_lost == pytest.approx(0, abs=1e-9)
    assert itself.whole.share_lost == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "slug"),
    [
        ({"use_dora": True}, "adapter-unsupported"),
        ({"peft_type": "IA3"}, "adapter-not-lora"),
        ({"layer_replication": [[0, 2]]}, "adapter-unsupported"),
    ],
)
def test_an_adapter_that_is_no_plain_lora_is_refused(base: Path, own: Path, change: dict[str, Any], slug: str) -> None:
    made.edit_config(own, **change)

    with refused(slug, AdapterError):
        deltarank.compare(base, own)


def test_an_adapter_as_the_base_and_an_adapter_of_another_base_are_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = made.write_base(made.wide_llama, tmp_path / "other")

    with pytest.raises(CheckpointError) as as_base:
        deltarank.compare(adapter, base)
    with pytest.raises(AdapterError) as other_base:
        deltarank.compare(other, adapter)

    assert as_base.value.slug == "adapter-not-checkpoint"
    assert other_base.value.slug == "adapter-wrong-base"


def test_parts_that_change_nothing_are_noted(base: Path, own: Path) -> None:
    tensors = load_file(own / "adapter_model.safetensors")
    key = next(name for name in tensors if "lora_A" in name)
    tensors[key.replace("layers.0", "layers.9")] = torch.ones(3, 32)
    save_file(tensors, own / "adapter_model.safetensors")

    results = deltarank.compare(base, own)

    assert any("of the adapter changes nothing" in note for note in results.notes)


def test_biases_for_modules_that_have_none_are_left_out_with_a_note(base: Path, tmp_path: Path) -> None:
    adapter = made.train(base, tmp_path / "a", r=2, target_modules=["q_proj"], lora_bias=True)
    results = deltarank.compare(base, adapter)

    assert any(
        "2 biases of the adapter left out: the base has no bias in these modules" in note for note in results.notes
    )
    assert {m.module for m in results.matrices if m.frobenius} == {"self_attn.q_proj"}


def test_a_run_resumes_only_with_the_same_adapter(base: Path, own: Path, tmp_path: Path) -> None:
    first = deltarank.compare(base, own, output=tmp_path / "run")
    again = deltarank.compare(base, own, output=tmp_path / "run")
    made.edit_config(own, lora_alpha=99)

    assert again.matrices == first.matrices
    with pytest.raises(deltarank.DeltarankError):
        deltarank.compare(base, own, output=tmp_path / "run")


@pytest.mark.slow
def test_an_adapter_on_the_hub_over_a_base_that_is_streamed(base: Path, adapter: Path, tmp_path: Path) -> None:
    """By the real client: the base by byte ranges, the adapter into the cache."""
    pair, out = ("org/base", "org/lora"), tmp_path / "run"
    with FakeHub() as hub:
        hub.add("org/base", base)
        commit = hub.add("org/lora", adapter).commit("main")
        done = subprocess.run(
            [sys.executable, "-m", "deltarank", "compare", *pair, "--stream", "-q", "-o", out],
            env=client_environment(hub, tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    streamed, local = Results.load(tmp_path / "run"), deltarank.compare(base, adapter)

    assert (streamed.finetune.ref, streamed.finetune.revision) == ("org/lora", commit)
    assert [m.losses for m in streamed.matrices] == [m.losses for m in local.matrices]
    assert [m.mean_abs for m in streamed.matrices] == [m.mean_abs for m in local.matrices]
