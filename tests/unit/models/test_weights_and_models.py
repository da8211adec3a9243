"""A candidate's model is what transformers would load from a folder with its numbers in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits
from torch import Tensor
from transformers import AutoModelForCausalLM

from deltarank.checkpoints import Checkpoint, open_checkpoint, pair_checkpoints
from deltarank.errors import CheckpointError, JobError, UsageError
from deltarank.jobs.outputs.low_rank import Decomposer, LowRank, carried
from deltarank.models import (
    Edit,
    EditedWeights,
    Head,
    Predictor,
    Window,
    batch_windows,
    load_model,
    read_piece,
    read_skeleton,
    stream_model,
    translate_out_of_memory,
)
from deltarank.runtime import SolverOptions, make_plan
from tiny_architectures import DENSE, EXPERTS, tokens, write_pair

CPU = torch.device("cpu")
ALL = {**DENSE, **EXPERTS}
LARGEST = 64
"""No side of these models is longer: every rank up to it is held."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=list(ALL))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(ALL[request.param], tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(ALL["llama"], tmp_path_factory.mktemp("llama"))


def decomposed(before: Checkpoint, after: Checkpoint, folder: Path, rank: int = LARGEST) -> LowRank:
    settings = SolverOptions.checked(
        ranks=(rank,), solver="exact", tolerance=1e-4, dtype="float32", device="cpu", include=(), exclude=()
    )
    pairing = pair_checkpoints(before, after)
    plan = make_plan(before, after, pairing, settings)
    numbers = {step.pair.name: number for number, step in enumerate(plan.steps)}
    worker = Decomposer(settings, rank, lambda name: folder / f"{numbers[name]}.factors")
    found = {step.pair.name: worker.result(step) for step in plan.steps}
    pairs = {each.name: each for each in pairing.pairs}
    return LowRank(pairs, found, lambda name: folder / f"{numbers[name]}.factors", CPU)


def logits(model: object) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens()).logits  # type: ignore[operator,no-any-return]


def plain(folder: Path) -> Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def loaded(checkpoint: Checkpoint, edits: list[Edit] | None = None) -> Tensor:
    weights = EditedWeights(checkpoint, edits or [], CPU)
    return logits(load_model(read_skeleton(checkpoint), weights, dtype=torch.float32, device=CPU))


def test_without_edits_it_is_what_transformers_loads(pair: tuple[Path, Path]) -> None:
    with open_checkpoint(pair[0]) as base:
        assert torch.equal(loaded(base), plain(pair[0]))


def test_full_rank_everywhere_is_the_finetune_and_rank_0_the_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """All of D in the matrices; what is no matrix is taken from the finetune, by transformers' own loading."""
    with open_checkpoint(pair[0]) as base, open_checkpoint(pair[1]) as tuned:
        low = decomposed(base, tuned, tmp_path)
        full = loaded(tuned, low.replacements(LARGEST, list(low.pairs)))
        none = loaded(base, low.edits(0))

    truth, start = plain(pair[1]), plain(pair[0])
    assert (truth - start).abs().max() > 1e-2
    assert torch.allclose(full, truth, atol=1e-4 * float(truth.abs().max()), rtol=0)
    assert torch.equal(none, start)


def test_a_smaller_rank_is_the_truncated_svd(llama: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in llama)
    with open_checkpoint(llama[0]) as base, open_checkpoint(llama[1]) as tuned:
        low = decomposed(base, tuned, tmp_path)
        weights = EditedWeights(base, low.edits(3), CPU)
        assert low.pairs
        for name in low.pairs:
            u, s, v = torch.linalg.svd(after[name].double() - before[name].double(), full_matrices=False)
            best = before[name].double() + (u[:, :3] * s[:3]) @ v[:3]
            assert torch.allclose(weights[name][...].double(), best, atol=1e-6)
            assert low.found[name].lost_at(3) == pytest.approx(float((s[3:] ** 2).sum()), rel=1e-4)


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


def test_routers_and_heads_are_not_carried(tmp_path: Path) -> None:
    base_folder, tuned_folder = write_pair(EXPERTS["mixtral"], tmp_path)
    with open_checkpoint(base_folder) as base, open_checkpoint(tuned_folder) as tuned:
        pairs = pair_checkpoints(base, tuned).pairs
        left = {each.name for each in pairs} - {each.name for each in carried(pairs)}

    assert left == {f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in (0, 1)}


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
        assert torch.allclose(logits(model), plain(folder), atol=1e-6)
        held = [weight for weight in model.parameters() if not weight.is_meta]
    assert held == []


def test_fused_experts_cannot_be_streamed(tmp_path: Path) -> None:
    folder, _ = write_pair(EXPERTS["mixtral"], tmp_path)
    with open_checkpoint(folder) as base, pytest.raises(JobError) as caught:
        stream_model(read_skeleton(base), EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)
    assert caught.value.slug == "cannot-stream"


# ---- what is kept of predictions


def windows(rows: int = 4) -> list[Window]:
    """Of unlike lengths, so that batches are padded."""
    return [Window.from_mask(ids[: 12 - 2 * i].tolist(), [True] * (12 - 2 * i)) for i, ids in enumerate(tokens(rows))]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_head_on_what_is_kept_gives_the_logits(llama: tuple[Path, Path], streamed: bool) -> None:
    with open_checkpoint(llama[1]) as tuned:
        plan, weights = read_skeleton(tuned), EditedWeights(tuned, [], CPU)
        if streamed:
            model, own_head = stream_model(plan, weights, dtype=torch.float32, device=CPU)
        else:
            model, own_head = load_model(plan, weights, dtype=torch.float32, device=CPU), None
        predictor = Predictor(model, CPU, own_head)
        kept = predictor.head_inputs(windows())
        head = predictor.head

    assert kept[0].shape == (11, 32)
    whole = AutoModelForCausalLM.from_pretrained(llama[1], dtype=torch.float32)
    for window, each in zip(windows(), kept, strict=True):
        with torch.inference_mode():
            truth = whole(input_ids=torch.tensor([window.ids])).logits[0, list(window.rows)]
        assert torch.allclose(head.logits(each), truth, atol=1e-5)


def test_logits_are_kept_where_the_head_is_not_the_end(llama: tuple[Path, Path]) -> None:
    whole = AutoModelForCausalLM.from_pretrained(llama[1], dtype=torch.float32)
    inner = whole.forward

    def capped(*args: object, **options: object) -> object:
        out = inner(*args, **options)
        out.logits = 3 * torch.tanh(out.logits / 3)
        return out

    whole.forward = capped
    predictor = Predictor(whole, CPU)
    kept = predictor.head_inputs(windows())

    assert predictor.head == Head(None)
    with torch.inference_mode():
        truth = capped(input_ids=torch.tensor([windows()[0].ids])).logits[0, :-1]  # type: ignore[attr-defined]
    assert torch.allclose(predictor.head.logits(kept[0]), truth, atol=1e-5)


def test_only_scored_tokens_are_kept() -> None:
    window = Window.from_mask([5, 6, 7, 8], [False, False, True, True])
    assert window.rows == (1, 2)
    assert window.targets == (7, 8)


def test_each_window_is_in_one_batch_and_none_is_too_large() -> None:
    many = [Window.from_mask([1] * length, [True] * length) for length in (3, 9, 9, 2, 5, 9)]
    parts = batch_windows(many, size=None, tokens=18)
    assert sorted(i for part in parts for i in part) == list(range(6))
    assert all(len(part) * max(len(many[i].ids) for i in part) <= 18 for part in parts)
    assert [len(part) for part in batch_windows(many, size=4, tokens=1)] == [4, 2]


def test_a_batch_without_memory_says_what_to_do() -> None:
    """As torch says it on a CPU; half of the batch is advised."""
    with pytest.raises(JobError) as caught, translate_out_of_memory(CPU, batch=8):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert caught.value.slug == "out-of-memory"
    assert "--batch 4" in caught.value.cure
    with pytest.raises(RuntimeError, match="shape"), translate_out_of_memory(CPU, batch=8):
        torch.ones(2, 3) @ torch.ones(2, 3)


# ---- what cannot be loaded


def test_a_folder_without_a_configuration_is_refused(llama: tuple[Path, Path], tmp_path: Path) -> None:
    save_file(load_file(llama[0] / "model.safetensors"), tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as base, pytest.raises(CheckpointError) as caught:
        read_skeleton(base)
    assert caught.value.slug == "not-a-language-model"


def test_a_model_that_needs_its_own_program_is_refused_unless_asked_for(
    llama: tuple[Path, Path], tmp_path: Path
) -> None:
    save_file(load_file(llama[0] / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"model_type": "of_its_own", "auto_map": {"AutoConfig": "it.Config", "AutoModelForCausalLM": "it.Model"}}'
    )
    with open_checkpoint(tmp_path) as base, pytest.raises(UsageError) as caught:
        read_skeleton(base)
    assert caught.value.slug == "remote-code"


def test_missing_tensors_are_not_made_up(llama: tuple[Path, Path], tmp_path: Path) -> None:
    weights = load_file(llama[0] / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((llama[0] / "config.json").read_bytes())
    with open_checkpoint(tmp_path) as base, pytest.raises(CheckpointError) as caught:
        load_model(read_skeleton(base), EditedWeights(base, [], CPU), dtype=torch.float32, device=CPU)
    assert caught.value.slug == "weights-incomplete"
    assert "up_proj" in caught.value.message


def test_a_quantised_checkpoint_is_refused(llama: tuple[Path, Path], tmp_path: Path) -> None:
    weights = load_file(llama[0] / "model.safetensors")
    weights = {name: w.to(torch.int8) for name, w in weights.items()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((llama[0] / "config.json").read_bytes())
    with open_checkpoint(tmp_path) as base, pytest.raises(JobError) as caught:
        read_skeleton(base)
    assert caught.value.slug == "quantised-model"
    assert "I8" in caught.value.message
