"""`ExtractJob` over open checkpoints: the layout of the adapter, and what a resumed run takes over."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deltarank.checkpoints import open_checkpoint
from deltarank.errors import JobError, OutputError, UsageError
from deltarank.jobs.extract import ExtractedAdapter, ExtractJob, ExtractOptions
from deltarank.jobs.extract.assemble import AdapterWriter
from deltarank.jobs.extract.layout import FusedExpert
from deltarank.results import Outcome
from deltarank.runtime import ProgressListener
from deltarank.servers import ExpertLayout, server_names

UP = "model.layers.0.mlp.up_proj"
SHAPES = {
    "model.embed_tokens.weight": (40, 16),
    f"{UP}.weight": (24, 16),
    f"{UP}.bias": (24,),
    "model.layers.1.mlp.up_proj.weight": (24, 16),
    "model.layers.0.norm.weight": (16,),
    "lm_head.weight": (40, 16),
}

MakeJob = Callable[..., ExtractJob]


def write(folder: Path, weights: Mapping[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(dict(weights), folder / "model.safetensors")
    return folder


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[MakeJob]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tuned = {name: w + 0.01 * torch.randn(w.shape, generator=generator) for name, w in base.items()}
    tuned["added.weight"] = torch.ones(3, 3)
    with ExitStack() as stack:
        folders = [write(tmp_path / "base", base), write(tmp_path / "finetune", tuned)]
        checkpoints = [stack.enter_context(open_checkpoint(folder)) for folder in folders]
        yield lambda **options: ExtractJob(*checkpoints, ExtractOptions(**{"rank": 8, **options}))


def test_a_fused_tensor_that_lacks_experts_is_not_written(make_job: MakeJob, tmp_path: Path) -> None:
    """No layout has one. If one had, the factors of its other experts would be left out silently."""
    job = make_job()
    expert = FusedExpert(0, 2, ExpertLayout(("up_proj",), inputs_first=False))
    target = replace(job.plan.layout.targets[0], as_parameter=True, fused_expert=expert)
    matrices = {target.pair.name: SimpleNamespace(outcome=Outcome.MEASURED)}
    contents = SimpleNamespace(factored=[target], matrices=matrices, zero_modules=[], whole_tensors=[], biases={})
    writer = AdapterWriter(contents, job.base, job.finetune, torch.float32, lambda name: tmp_path / name)

    with pytest.raises(AssertionError, match="experts are missing"):
        writer.write(tmp_path)


def run(job: ExtractJob, output: Path, *, force: bool = False) -> ExtractedAdapter:
    return job.run(output, force=force, progress=ProgressListener())


@pytest.mark.parametrize("server", server_names())
def test_every_tensor_has_one_place(make_job: MakeJob, server: str) -> None:
    layout = make_job(server=server).plan.layout
    names = [target.pair.name for target in layout.targets] + [tensor.name for tensor in layout.unfactored]

    assert sorted(names) == sorted([*SHAPES, "added.weight"])
    assert all(tensor.can_be_carried or tensor.reason for tensor in layout.unfactored)


def test_peft_is_given_what_other_servers_are_not(make_job: MakeJob) -> None:
    places = {
        server: {x.name: x.whole_module or x.bias_of for x in make_job(server=server).plan.carried}
        for server in ("peft", "vllm")
    }

    assert places == {
        "vllm": {},
        "peft": {
            "model.embed_tokens.weight": "model.embed_tokens",
            "model.layers.0.norm.weight": "model.layers.0.norm",
            "lm_head.weight": "lm_head",
            f"{UP}.bias": UP,
        },
    }


def test_a_layer_that_is_excluded_gets_zeros_where_every_layer_is_required(make_job: MakeJob) -> None:
    exclude = f"{UP}.weight"
    zeros = {
        server: [zero.module for zero in make_job(server=server, exclude=exclude).plan.layout.zero_modules]
        for server in ("portable", "vllm")
    }

    assert zeros == {"portable": [UP], "vllm": []}


def test_what_no_adapter_can_hold_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(JobError, match="There is nothing to extract: a portable adapter leaves out") as nothing:
        make_job(include="lm_head*").plan  # noqa: B018
    with pytest.raises(UsageError, match="no matrix here has a rank above 16") as beyond:
        make_job(rank=17, server="peft").plan  # noqa: B018

    assert (nothing.value.slug, beyond.value.slug) == ("nothing-to-extract", "rank-beyond-matrices")


def test_a_refusal_to_extract_gives_a_reason_where_no_tensor_has_one(make_job: MakeJob) -> None:
    """PEFT would carry the head whole, so nothing is wrong with it."""
    with pytest.raises(JobError, match="There is nothing to extract: no matrix that gets a LoRA is among"):
        make_job(include="lm_head*", server="peft").plan  # noqa: B018


def test_the_plan_of_an_unknown_rank_is_that_of_the_largest(make_job: MakeJob) -> None:
    plan = make_job(rank="auto", max_error=0.5).plan

    assert plan.layout.rank == 16
    assert plan.rank_search_seconds > 0
    assert make_job().plan.rank_search_seconds == 0


def test_an_adapter_keeps_the_command_order_of_its_settings(make_job: MakeJob, tmp_path: Path) -> None:
    settings = run(make_job(), tmp_path / "a").settings

    assert list(settings)[:7] == list(make_job().options.to_plain())
    assert list(settings)[7:] == ["threads", "torch", "fingerprints", "seconds", "command"]


@pytest.mark.parametrize("record", ['{"path": "x"}', '{"energy_of": 3}', "MATRIX"])
def test_records_of_unknown_tensors_are_ignored(make_job: MakeJob, tmp_path: Path, record: str) -> None:
    """As a damaged disk may leave them: the line is read, and what it names is measured again."""
    job = make_job()
    whole = run(job, tmp_path / "whole")
    unknown = {**json.loads(whole.to_json())["matrices"][0], "name": "no such tensor"}
    partial = tmp_path / "a.partial"
    partial.mkdir()
    (partial / "run.json").write_text(json.dumps(job.identity))
    (partial / "matrices.jsonl").write_text(record.replace("MATRIX", json.dumps(unknown)) + "\n")

    assert run(job, tmp_path / "a").matrices == whole.matrices
    assert {matrix.outcome for matrix in whole.matrices} == {Outcome.MEASURED}


def test_a_matrix_that_cannot_be_read_is_an_outcome(make_job: MakeJob, tmp_path: Path) -> None:
    """The file of the finetune is cut after the plan was made."""
    job = make_job()
    last = max((target.pair.finetune for target in job.plan.layout.targets), key=lambda piece: piece.start)
    with (tmp_path / "finetune" / "model.safetensors").open("r+b") as file:
        file.truncate(last.start)
    adapter = run(job, tmp_path / "a")

    outcomes = {matrix.name: matrix.outcome for matrix in adapter.matrices}
    assert outcomes.pop(last.tensor) is Outcome.UNREADABLE
    assert set(outcomes.values()) == {Outcome.MEASURED}
    assert any(last.tensor in note for note in adapter.notes)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_way_is_left_alone(make_job: MakeJob, tmp_path: Path, force: bool) -> None:
    (tmp_path / "a").write_text("years of work")
    with pytest.raises(OutputError, match="is not an adapter"):
        run(make_job(), tmp_path / "a", force=force)

    assert (tmp_path / "a").read_text() == "years of work"
