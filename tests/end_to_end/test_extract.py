"""`deltarank extract`, seen from the outside: float64 SVDs, safetensors' own reader, and PEFT itself."""

import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import LAYERS, MATRICES, base_weights, full_finetune, merged_lora, write
from transformers import AutoModelForCausalLM

import deltarank
import peft_adapters as made
from commands import RunCommand
from deltarank.errors import OutputError
from deltarank.jobs.extract import extract_with_picture
from deltarank.results import Outcome
from refusals import refused
from tiny_architectures import (
    DENSE,
    EXPERTS,
    VOCABULARY,
    best_approximation,
    logits,
    logits_of,
    served,
    with_rank,
    write_pair,
)

Folders = Mapping[str, Path]
Pair = tuple[Path, Path]

PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    home = tmp_path_factory.mktemp("models")
    base = base_weights()
    broken = full_finetune(base)
    broken["model.layers.0.mlp.up_proj.weight"][3, 4] = math.nan
    made: dict[str, Mapping[str, torch.Tensor]] = {
        "base": base,
        "full": full_finetune(base),
        "lora": merged_lora(base, 3),
        "copy": dict(base),
        "broken": broken,
    }
    return {name: write(home / name, weights) for name, weights in made.items()}


def delta_of(folders: Folders, name: str, finetune: str = "full") -> np.ndarray:
    files = (load_file(folders[side] / "model.safetensors")[name].double().numpy() for side in (finetune, "base"))
    return next(files) - next(files)


def product(folder: Path, name: str) -> np.ndarray:
    tensors = load_file(folder / "adapter_model.safetensors")
    key = PREFIX + name.removesuffix(".weight")
    return (tensors[f"{key}.lora_B.weight"].double() @ tensors[f"{key}.lora_A.weight"].double()).numpy()


# What is written ----------------------------------------------------------------------------------------------


def test_the_adapter_is_the_best_of_its_rank(folders: Folders, tmp_path: Path) -> None:
    adapter = deltarank.extract(folders["base"], folders["full"], rank=8, output=tmp_path / "a", dtype="float32")

    assert len(adapter.matrices) == MATRICES
    for matrix in adapter.matrices:
        delta = delta_of(folders, matrix.name)
        energy = (delta**2).sum()
        truth = ((delta - best_approximation(delta, 8)) ** 2).sum() / energy
        written = ((delta - product(tmp_path / "a", matrix.name)) ** 2).sum() / energy

        assert matrix.energy == pytest.approx(energy, rel=1e-6)
        assert matrix.losses[0].relative_error ** 2 == pytest.approx(truth, rel=1e-6)
        assert written == pytest.approx(truth, rel=1e-6)
        assert matrix.written is not None
        assert matrix.written.relative_error**2 == pytest.approx(written, rel=1e-6)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "float32"])
def test_the_budget_follows_from_the_files(folders: Folders, tmp_path: Path, dtype: str | None) -> None:
    """Every share recomputed in float64 from both checkpoints and the adapter as safetensors reads it."""
    out = tmp_path / "a"
    budget = deltarank.extract(folders["base"], folders["full"], rank=8, output=out, dtype=dtype, server="vllm").budget
    names = list(load_file(folders["base"] / "model.safetensors"))
    deltas = {name: delta_of(folders, name) for name in names}
    whole = sum((delta**2).sum() for delta in deltas.values())
    matrices = [name for name in names if "_proj" in name]
    truncated = sum(((deltas[n] - best_approximation(deltas[n], 8)) ** 2).sum() for n in matrices) / whole
    lost = sum(((deltas[n] - product(out, n)) ** 2).sum() for n in matrices) / whole
    others = {n: (deltas[n] ** 2).sum() / whole for n in names if n not in matrices}

    assert budget.truncated == pytest.approx(truncated, rel=1e-6)
    assert budget.rounded == pytest.approx(lost - truncated, rel=1e-3, abs=3e-8)
    assert budget.left_out == pytest.approx(sum(others.values()), rel=1e-6)
    assert budget.kept == pytest.approx(1 - lost - sum(others.values()), rel=1e-6)
    assert budget.kept + budget.truncated + budget.rounded + budget.left_out == pytest.approx(1, abs=1e-12)
    assert {t.name: t.share for t in budget.tensors} == pytest.approx(others, rel=1e-6)
    assert all("vLLM" in t.reason for t in budget.tensors)


def test_the_dtype_is_that_of_the_finetune(folders: Folders, tmp_path: Path) -> None:
    adapter = deltarank.extract(folders["base"], folders["full"], rank=8, output=tmp_path / "a")

    assert adapter.dtype == "bfloat16"
    assert {w.dtype for w in load_file(tmp_path / "a" / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_an_adapter_has_metadata_and_a_model_card(folders: Folders, tmp_path: Path) -> None:
    adapter = deltarank.extract(folders["base"], folders["full"], rank=8, output=tmp_path / "a")
    about = json.loads((tmp_path / "a" / "deltarank.json").read_text())
    card = (tmp_path / "a" / "README.md").read_text()

    assert deltarank.ExtractedAdapter.load(tmp_path / "a") == adapter
    assert about["rank"] == 8
    assert about["server"] == "portable"
    assert set(about["budget"]) == {
        *("kept", "truncated", "rounded", "left_out", "fitted", "unpaired", "energy", "kinds", "tensors")
    }
    assert len(about["matrices"]) == MATRICES
    assert adapter.sentence in card
    assert "`self_attn.q_proj`" in card
    assert about["settings"]["fingerprints"]["base"] in card
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "deltarank.json",
    ]


def test_a_drawn_picture_is_shown_on_the_card(folders: Folders, tmp_path: Path) -> None:
    drawn: list[Any] = []

    def draw(about: Mapping[str, Any]) -> bytes:
        drawn.append(about)
        return b"a picture"

    extract_with_picture(folders["base"], folders["full"], draw, rank=8, output=tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()

    assert drawn == [json.loads((tmp_path / "a" / "deltarank.json").read_text())]
    assert (tmp_path / "a" / "budget.png").read_bytes() == b"a picture"
    assert "](budget.png)" in card
    assert "█" not in card


def test_a_picture_that_fails_is_left_out(folders: Folders, tmp_path: Path) -> None:
    def draw(about: Mapping[str, Any]) -> bytes:
        raise ValueError("no fonts here")

    adapter = extract_with_picture(folders["base"], folders["full"], draw, rank=8, output=tmp_path / "a")

    assert adapter == deltarank.ExtractedAdapter.load(tmp_path / "a")
    assert "no fonts here" in adapter.notes[-1]
    assert not (tmp_path / "a" / "budget.png").exists()
    assert "█" in (tmp_path / "a" / "README.md").read_text()


# As PEFT loads it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", [*DENSE, *EXPERTS])
def test_base_and_adapter_are_base_and_rank_r_delta(tmp_path: Path, name: str, merged: bool) -> None:
    base, finetune = write_pair({**DENSE, **EXPERTS}[name], tmp_path)
    server = "lorax" if name == "gpt2" else "portable"  # no adapter for it is portable
    adapter = deltarank.extract(base, finetune, rank=8, server=server, output=tmp_path / "a")
    found = logits(base, tmp_path / "a", merged=merged)
    truth = logits(with_rank(base, finetune, [m.name for m in adapter.matrices], 8, tmp_path / "truth"))

    assert {m.outcome for m in adapter.matrices} == {Outcome.MEASURED}
    torch.testing.assert_close(found, truth, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found, logits(base), atol=1e-3)


@pytest.mark.parametrize("name", ["tied llama", "gemma"])
def test_a_tied_vocabulary_is_saved_whole_for_peft_and_stays_tied(tmp_path: Path, name: str) -> None:
    base, finetune = write_pair(DENSE[name], tmp_path)
    adapter = deltarank.extract(base, finetune, rank=32, output=tmp_path / "a", server="peft")
    seen = deltarank.verify(base, finetune, tmp_path / "a")
    truth = logits(finetune)
    model: Any = served(base, tmp_path / "a")
    table, head = (
        module.modules_to_save["default"].weight
        for module in (model.base_model.model.get_input_embeddings(), model.base_model.model.lm_head)
    )

    assert adapter.budget.kept == pytest.approx(1, abs=1e-9)
    assert table is head
    assert seen.unused == ()
    assert seen.whole.share_lost == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(logits_of(model), truth, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits_of(model.merge_and_unload()), truth, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "tied llama"])
def test_added_tokens_load_in_peft_once_the_base_is_resized(tmp_path: Path, name: str) -> None:
    base, old = write_pair(DENSE[name], tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(old)
    model.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    model.save_pretrained(tmp_path / "more words")
    adapter = deltarank.extract(base, tmp_path / "more words", rank=32, output=tmp_path / "a", server="peft")
    resized: Any = AutoModelForCausalLM.from_pretrained(base)
    resized.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    resized.save_pretrained(tmp_path / "resized")

    assert any("resize_token_embeddings" in note for note in adapter.notes)
    assert adapter.budget.kept == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(logits(tmp_path / "resized", tmp_path / "a"), logits_of(model), atol=2e-5, rtol=1e-4)


def test_a_tied_vocabulary_that_peft_would_untie_stays_the_base_s(tmp_path: Path) -> None:
    """PEFT knows GPT-2's table by no name that it looks for."""
    base, finetune = write_pair(DENSE["gpt2"], tmp_path)
    adapter = deltarank.extract(base, finetune, rank=8, output=tmp_path / "a", server="peft")
    model: Any = served(base, tmp_path / "a")
    kinds = {tensor.kind for tensor in adapter.budget.tensors}

    assert "embedding" in kinds
    assert "position" not in kinds
    assert model.base_model.model.get_input_embeddings().weight is model.base_model.model.lm_head.weight


@pytest.mark.parametrize("name", ["mixtral", "qwen3 moe"])
def test_peft_loads_experts_that_transformers_fuses(tmp_path: Path, name: str) -> None:
    """Each expert's factors are of the rank; PEFT puts gate and up into one tensor, block by block."""
    base, finetune = write_pair(EXPERTS[name], tmp_path)
    adapter = deltarank.extract(
        base,
        finetune,
        rank=8,
        output=tmp_path / "a",
        server="peft",
        exclude=["*norm*", "*m_head*", "*embed*", "*.gate.*"],
    )
    truth = logits(with_rank(base, finetune, [m.name for m in adapter.matrices], 8, tmp_path / "truth"))

    assert sum(".experts." in m.name for m in adapter.matrices) == 2 * 4 * 3
    torch.testing.assert_close(logits(base, tmp_path / "a"), truth, atol=2e-5, rtol=1e-4)


def test_at_full_rank_peft_gives_back_the_finetune(llama: Pair, tmp_path: Path) -> None:
    adapter = deltarank.extract(*llama, rank=32, output=tmp_path / "a", server="peft")
    truth = logits(llama[1])

    assert adapter.budget.kept == pytest.approx(1, abs=1e-9)
    assert {"model.norm", "lm_head", "model.embed_tokens"} <= set(made.config_of(tmp_path / "a")["modules_to_save"])
    torch.testing.assert_close(logits(llama[0], tmp_path / "a"), truth, atol=2e-5, rtol=1e-4)


def test_at_rank_32_peft_gets_patterns_for_smaller_matrices_and_others_zeros(llama: Pair, tmp_path: Path) -> None:
    """k and v have 16 rows."""
    deltarank.extract(*llama, rank=32, output=tmp_path / "peft", server="peft")
    deltarank.extract(*llama, rank=32, output=tmp_path / "vllm", server="vllm")
    pattern = made.config_of(tmp_path / "peft")["rank_pattern"]
    ranks = {w.shape[0] for k, w in load_file(tmp_path / "vllm" / "adapter_model.safetensors").items() if "lora_A" in k}

    assert set(pattern.values()) == {16}
    assert made.config_of(tmp_path / "peft")["alpha_pattern"] == pattern
    assert made.config_of(tmp_path / "vllm")["rank_pattern"] == {}
    assert ranks == {32}


def test_identical_models_give_an_adapter_of_zeros_that_loads(llama: Pair, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in llama[0].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    adapter = deltarank.extract(llama[0], copy, rank=8, output=tmp_path / "a")

    assert {m.outcome for m in adapter.matrices} == {Outcome.IDENTICAL}
    assert adapter.budget.kept == 1
    assert torch.equal(logits(llama[0], tmp_path / "a"), logits(llama[0]))


def test_module_types_that_did_not_change_are_not_in_the_file(folders: Folders, tmp_path: Path) -> None:
    tuned = load_file(folders["base"] / "model.safetensors")
    changed = "model.layers.1.mlp.up_proj.weight"
    tuned[changed] += 0.01
    write(tmp_path / "some", tuned)
    deltarank.extract(folders["base"], tmp_path / "some", rank=8, output=tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")

    assert made.config_of(tmp_path / "a")["target_modules"] == ["up_proj"]
    assert len(tensors) == 2 * LAYERS
    assert not tensors[f"{PREFIX}model.layers.0.mlp.up_proj.lora_B.weight"].any()


def test_excluded_modules_are_not_matched_by_peft(llama: Pair, tmp_path: Path) -> None:
    exclude = ["*layers.0.mlp.up_proj*"]
    adapter = deltarank.extract(*llama, rank=8, output=tmp_path / "a", server="peft", exclude=exclude)
    model: Any = served(llama[0], tmp_path / "a")
    wrapped = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}

    assert wrapped == {matrix.path for matrix in adapter.matrices}
    assert "model.layers.0.mlp.up_proj" not in wrapped
    assert "model.layers.1.mlp.up_proj" in wrapped


def test_excluded_modules_are_zeros_where_every_layer_is_required(folders: Folders, tmp_path: Path) -> None:
    exclude = ["*layers.0.mlp.up_proj*"]
    adapter = deltarank.extract(folders["base"], folders["full"], rank=8, output=tmp_path / "a", exclude=exclude)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")

    assert len(tensors) == 2 * MATRICES
    assert not tensors[f"{PREFIX}model.layers.0.mlp.up_proj.lora_B.weight"].any()
    assert any("got zeros" in note for note in adapter.notes)


@pytest.mark.parametrize("server", ["portable", "vllm", "sglang", "lorax", "llama.cpp"])
def test_other_servers_get_nothing_that_they_refuse_or_ignore(folders: Folders, tmp_path: Path, server: str) -> None:
    deltarank.extract(folders["base"], folders["full"], rank=16, output=tmp_path / "a", server=server)
    config = made.config_of(tmp_path / "a")

    assert (config["r"], config["lora_alpha"]) == (16, 16)
    assert config["bias"] == "none"
    assert config["modules_to_save"] is None
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert not config["use_rslora"]
    assert all(".lora_" in key for key in load_file(tmp_path / "a" / "adapter_model.safetensors"))


def test_an_output_head_is_extracted_for_vllm_if_included(llama: Pair, tmp_path: Path) -> None:
    include = ["*_proj*", "lm_head*"]
    adapter = deltarank.extract(*llama, rank=8, output=tmp_path / "a", server="vllm", include=include)
    truth = logits(with_rank(*llama, [m.name for m in adapter.matrices], 8, tmp_path / "truth"))

    assert "lm_head" in made.config_of(tmp_path / "a")["target_modules"]
    torch.testing.assert_close(logits(llama[0], tmp_path / "a"), truth, atol=2e-5, rtol=1e-4)


# As `verify` measures it --------------------------------------------------------------------------------------


def test_a_head_that_is_included_is_carried_whole_for_peft(llama: Pair, tmp_path: Path) -> None:
    """As it is without `--include`: naming it must not leave it out."""
    named = deltarank.extract(*llama, rank=32, output=tmp_path / "a", server="peft", include=["*_proj*", "lm_head*"])

    assert "lm_head" in made.config_of(tmp_path / "a")["modules_to_save"]
    assert named.budget.left_out == 0


def test_a_model_type_whose_head_the_server_refuses_is_not_told_to_include_it(tmp_path: Path) -> None:
    base, tuned = write_pair(DENSE["mistral"], tmp_path)
    for include in ([], ["*_proj*", "lm_head*"]):
        adapter = deltarank.extract(
            base, tuned, rank=8, output=tmp_path / str(len(include)), server="vllm", include=include
        )
        [head] = [each for each in adapter.budget.tensors if each.kind == "lm_head"]
        assert head.reason == "vLLM loads no LoRA on the lm_head of this model type"
        assert "included by name" not in adapter.sentence


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("server", ["portable", "vllm", "sglang", "lorax", "llama.cpp", "peft"])
def test_verify_measures_what_extract_and_compare_promise(
    folders: Folders, tmp_path: Path, server: str, dtype: str
) -> None:
    """With none of the code that wrote the adapter, and as the server would apply it."""
    pair = (folders["base"], folders["full"])
    adapter = deltarank.extract(*pair, rank=8, output=tmp_path / "a", server=server, dtype=dtype)
    seen = deltarank.verify(*pair, tmp_path / "a", server=None if server == "peft" else server)
    promised = {m.name: m.loss(8) for m in deltarank.compare(*pair, ranks=[8]).matrices}
    measured = {tensor.name: tensor.energies for tensor in seen.tensors}

    assert seen.unused == ()
    assert seen.whole.share_lost == pytest.approx(1 - adapter.budget.kept, rel=1e-6)
    for matrix in adapter.matrices:
        energies = measured[matrix.name]
        assert matrix.written is not None
        assert energies.share_lost == pytest.approx(matrix.written.energy_lost, rel=1e-6)
        assert energies.share_best == pytest.approx(matrix.losses[0].energy_lost, rel=1e-5)
        assert energies.share_lost == pytest.approx(
            promised[matrix.name].energy_lost, rel=1e-5 if dtype == "float32" else 1e-4
        )


# Ranks --------------------------------------------------------------------------------------------------------


def test_auto_chooses_the_smallest_servable_rank_within_max_error(folders: Folders, tmp_path: Path) -> None:
    losses = deltarank.compare(folders["base"], folders["full"], ranks=[8, 16, 32]).totals.losses
    allowed = (losses[0].relative_error + losses[1].relative_error) / 2
    adapter = deltarank.extract(folders["base"], folders["full"], rank="auto", max_error=allowed, output=tmp_path / "a")

    assert adapter.rank == 16
    assert not (tmp_path / "a.partial").exists()


# Bad input ----------------------------------------------------------------------------------------------------


def test_a_matrix_with_nan_stays_as_in_the_base_with_a_note(folders: Folders, tmp_path: Path) -> None:
    adapter = deltarank.extract(folders["base"], folders["broken"], rank=8, output=tmp_path / "a")
    name = "model.layers.0.mlp.up_proj.weight"

    assert next(m.outcome for m in adapter.matrices if m.name == name) is Outcome.NOT_FINITE
    assert not product(tmp_path / "a", name).any()
    assert any(name in note for note in adapter.notes)
    assert next(t for t in adapter.budget.tensors if t.name == name).share is None


@pytest.mark.parametrize(
    "name", ["../../../escape.weight", "model.(.*)+.weight", "model.\u202e\n# x.weight", "model.x"]
)
def test_a_hostile_name_becomes_no_path_no_key_and_no_heading(tmp_path: Path, name: str) -> None:
    base = {**base_weights(), name: torch.zeros(32, 32)}
    pair = (write(tmp_path / "in" / "b", base), write(tmp_path / "in" / "f", full_finetune(base)))
    adapter = deltarank.extract(*pair, rank=8, output=tmp_path / "out" / "a")
    config = (tmp_path / "out" / "a" / "adapter_config.json").read_text()

    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a"]
    assert next(t.kind for t in adapter.budget.tensors if t.name == name) == "parameter"
    assert len(load_file(tmp_path / "out" / "a" / "adapter_model.safetensors")) == 2 * MATRICES
    assert "escape" not in config
    assert "\n# x" not in (tmp_path / "out" / "a" / "README.md").read_text()


def test_an_unrelated_base_is_noted(folders: Folders, tmp_path: Path) -> None:
    unrelated = write(tmp_path / "unrelated", base_weights(seed=77))
    adapter = deltarank.extract(folders["base"], unrelated, rank=8, output=tmp_path / "a")

    assert any("is this the base" in note for note in adapter.notes)


# The output ---------------------------------------------------------------------------------------------------


def test_another_adapter_is_replaced_only_by_force(folders: Folders, tmp_path: Path) -> None:
    deltarank.extract(folders["base"], folders["full"], rank=8, output=tmp_path / "a")
    with refused("output-exists", OutputError, match="already contains an adapter"):
        deltarank.extract(folders["base"], folders["full"], rank=16, output=tmp_path / "a")
    adapter = deltarank.extract(folders["base"], folders["full"], rank=16, output=tmp_path / "a", force=True)

    assert adapter.rank == made.config_of(tmp_path / "a")["r"] == 16
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# Cut off ------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
import deltarank

class Killer(deltarank.ProgressListener):
    left = int(sys.argv[4])
    def finished(self, name, seconds_left, share_done):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

deltarank.extract(sys.argv[1], sys.argv[2], rank=8, output=sys.argv[3], progress=Killer())
"""


@pytest.fixture(scope="module")
def killed(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an extraction at rank 8 leaves that was killed after three matrices: a.partial. To be copied."""
    home = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", PROGRAM, *map(str, (folders["base"], folders["full"], home / "a", 3))]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    return home


class Listener(deltarank.ProgressListener):
    kept = 0

    def resumed(self, finished: int) -> None:
        self.kept = finished


def bytes_of(adapter: Path) -> dict[str, bytes]:
    return {name: (adapter / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json")}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_resumed_run_ends_with_the_same_bytes(folders: Folders, killed: Path, tmp_path: Path) -> None:
    pair = (folders["base"], folders["full"])
    deltarank.extract(*pair, rank=8, output=tmp_path / "whole")
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    assert not (tmp_path / "a").exists()

    listener = Listener()
    adapter = deltarank.extract(*pair, rank=8, output=tmp_path / "a", progress=listener)

    assert listener.kept >= 3
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "whole"]
    assert adapter.budget == deltarank.ExtractedAdapter.load(tmp_path / "whole").budget


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond that size fail, as on a full disk: the system refuses a write in the middle of it."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files here")
@pytest.mark.parametrize("limit", [1000, 12_000], ids=["at the first factors", "at the adapter"])
def test_a_run_that_filled_the_disk_is_resumed_by_the_same_command(
    folders: Folders, command: RunCommand, tmp_path: Path, limit: int
) -> None:
    words = ("extract", folders["base"], folders["full"], "-r", 8, "-q", "-o")
    with files_of_at_most(limit):
        full = command(*words, tmp_path / "a")

    assert (full.code, full.out) == (1, "")
    assert full.err.startswith("deltarank: Cannot write ")
    assert "the same command to resume" in full.err
    assert len(full.err.splitlines()) == 3  # what, the cure, where to read more
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]

    assert command(*words, tmp_path / "a").code == 0
    assert command(*words, tmp_path / "whole").code == 0
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "whole"]


def test_truncated_factors_are_computed_again(folders: Folders, killed: Path, tmp_path: Path) -> None:
    pair = (folders["base"], folders["full"])
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    kept = sorted((tmp_path / "a.partial").glob("*.factors"))
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    deltarank.extract(*pair, rank=8, output=tmp_path / "a")
    deltarank.extract(*pair, rank=8, output=tmp_path / "whole")

    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "whole")


def test_records_of_another_rank_are_not_reused(folders: Folders, killed: Path, tmp_path: Path) -> None:
    pair = (folders["base"], folders["full"])
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    with refused("run-differs", OutputError, match="rank: 8 in that run, 16 now"):
        deltarank.extract(*pair, rank=16, output=tmp_path / "a")
    adapter = deltarank.extract(*pair, rank=16, output=tmp_path / "a", force=True)

    assert adapter.rank == 16


# The command --------------------------------------------------------------------------------------------------


@pytest.fixture
def extract(command: RunCommand, folders: Folders) -> RunCommand:
    """`deltarank extract` of the full finetune with these options."""
    return lambda *options: command("extract", folders["base"], folders["full"], *options)


def test_the_command_prints_the_budget(extract: RunCommand, tmp_path: Path) -> None:
    done = extract("-r", 8, "-o", tmp_path / "a", "--server", "vllm")

    assert done.code == 0
    assert done.out.startswith("The adapter keeps ")
    for words in ("truncated at rank 8", "that vLLM cannot load (", "mlp.up_proj, 2 matrices"):
        assert words in done.out
    assert f"wrote {tmp_path / 'a'}" in done.err
    assert done.err.splitlines()[-1].endswith(f" {tmp_path / 'a'} --server vllm")
    assert (tmp_path / "a" / "budget.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_line_is_the_command_that_checks_the_adapter(
    extract: RunCommand, command: RunCommand, tmp_path: Path
) -> None:
    """Quoted for a shell, and not under -q."""
    last = extract("-r", 8, "-o", tmp_path / "an adapter").err.splitlines()[-1]

    assert last.startswith("Check it: deltarank verify ")
    verified = command(*shlex.split(last.removeprefix("Check it: deltarank ")))
    assert verified.code == 0
    assert "of optimal" in verified.out
    assert "Check it" not in extract("-r", 8, "-o", tmp_path / "an adapter", "-q").err


def test_repeating_the_command_does_nothing_and_says_so(extract: RunCommand, tmp_path: Path) -> None:
    options = ("-r", "auto", "--max-error", 0.9, "-o", tmp_path / "a")
    first, before = extract(*options), bytes_of(tmp_path / "a")
    again = extract(*options)

    assert (first.code, again.code) == (0, 0)
    assert bytes_of(tmp_path / "a") == before
    assert "Rank 8 is the smallest servable rank with a relative error of at most 0.9." in first.err
    assert "already contains this adapter: nothing to do" in again.err


@pytest.mark.parametrize(
    ("output", "force", "message"),
    [
        ("thesis", [], "is not an adapter"),
        ("thesis", ["--force"], "is not an adapter"),
        ("file/below", [], "Not a directory"),
        ("adapter", [], "--force to replace it"),
    ],
)
def test_the_command_leaves_the_files_of_the_output_alone(
    extract: RunCommand, tmp_path: Path, output: str, force: list[str], message: str
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("years of work")
    (tmp_path / "file").write_text("of something else")
    assert extract("-r", 8, "-o", tmp_path / "adapter", "-q").code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = extract("-r", 16, "-o", tmp_path / output, "-q", *force)

    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 3
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_command_prints_json(extract: RunCommand, tmp_path: Path) -> None:
    done = extract("-r", "auto", "--max-error", 0.9, "-o", tmp_path / "a", "--json", "-q")
    about = json.loads(done.out)

    assert (done.code, done.err, about["rank"]) == (0, "", 8)
    assert about == json.loads((tmp_path / "a" / "deltarank.json").read_text())
    assert "deltarank extract" in about["settings"]["command"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-r", "600"], 2, "the highest is 512"),
        (["-r", "lots"], 2, "--rank: 'lots' is not a rank"),
        (["-r", "0"], 2, "--rank: '0' is not a rank; a rank is a positive integer."),
        (["-r", "33", "--server", "peft"], 2, "no matrix here has a rank above 32"),
        (["-r", "8,16"], 2, "'8,16' is not a rank"),
        (["-r", "auto"], 2, "--max-error"),
        (
            ["-r", "8", "--include", "*lm_head*"],
            1,
            "There is nothing to extract: a portable adapter leaves out lm_head.",
        ),
        (["-r", "8", "--include", "*norm*"], 1, "tensors outside linear layers, which a LoRA cannot represent"),
        (["-r", "8", "--exclude", "*"], 1, "No matrix is left to measure"),
    ],
)
def test_the_command_refuses_before_anything_is_written(
    extract: RunCommand, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    done = extract(*options, "-o", tmp_path / "a", "-q")

    assert done.code == code
    assert message in done.err
    assert list(tmp_path.iterdir()) == []
