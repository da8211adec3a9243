"""`compare --calibration-text`: what truncations lose of D x, against D x itself in float64, on real models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import deltarank
from commands import RunCommand, StopAfter
from deltarank.errors import JobError, UsageError
from deltarank.results import ActivationLoss, Results
from refusals import refused
from some_tokenizers import byte_level
from tiny_architectures import FEW_EXPERTS, HEADS, SIZES, Make, architecture, write_pair

RANKS = (1, 4, 16, 512)
TEXTS = ["the rain fell on the stones", "and the old man counted them, one by one", "until the light was gone"]
BYTES = {"vocab_size": 261}
MODELS: dict[str, Make] = {
    "untied head": architecture("llama", **SIZES | BYTES),
    "tied head": architecture("llama", **SIZES | BYTES, tie_word_embeddings=True),
    "Conv1D": architecture("gpt2", **BYTES, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "fused projections": architecture("phi3", **SIZES | BYTES),
    "experts": architecture("qwen3_moe", **FEW_EXPERTS | BYTES, num_experts=4, decoder_sparse_step=1),
    "transposed experts": architecture(
        "gpt_oss", **HEADS | BYTES, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    ),
}


def write_models(make: Make, folder: Path) -> tuple[Path, Path]:
    base, finetune = write_pair(make, folder, steps=2)
    byte_level().save_pretrained(finetune)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return base, finetune


def compare(base: Path, finetune: Path, **options: Any) -> Results:
    text = base.parent / "text.jsonl"
    return deltarank.compare(base, finetune, **{"ranks": RANKS, "calibration_texts": [text], **options})


# ---- the oracle: the inputs as hooks of torch see them, in float64 ---------------------------------------------------


class Inputs:
    """x of every linear layer by the name of its weight: rows for each token but the first of a document."""

    def __init__(self, folder: Path) -> None:
        self.rows: dict[str, list[Tensor]] = {}
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        self.model.set_experts_implementation("eager")
        for name, module in self.model.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
                module.register_forward_pre_hook(lambda m, args, name=name: self.take_experts(name, m, args))
            elif weight is not None and weight.ndim == 2 and type(module).__name__ != "Embedding":
                module.register_forward_pre_hook(lambda _, args, name=name: self.take(f"{name}.weight", args[0]))
        tokenizer = byte_level()
        with torch.inference_mode():
            for text in TEXTS:
                ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
                self.rows.setdefault("ids", []).append(torch.tensor(ids[1:]))
                self.model(input_ids=torch.tensor([ids]))

    def take(self, name: str, rows: Tensor) -> None:
        self.rows.setdefault(name, []).append(rows.reshape(-1, rows.shape[-1])[1:])

    def take_experts(self, name: str, experts: Any, args: tuple[Tensor, ...]) -> None:
        hidden, chosen = args[0].reshape(-1, args[0].shape[-1]), args[1]
        for expert in range(experts.num_experts):
            rows = hidden[[i for i in range(1, len(hidden)) if expert in chosen[i]]]
            self.rows.setdefault(f"{name}.gate_up_proj[{expert}]", []).append(rows)
            up = experts.gate_up_proj[expert]
            product = rows @ up + experts.gate_up_proj_bias[expert] if experts.is_transposed else rows @ up.T
            self.rows.setdefault(f"{name}.down_proj[{expert}]", []).append(experts._apply_gate(product))

    def of(self, name: str) -> Tensor:
        return torch.cat(self.rows[name])


def expected(delta: Tensor, uses: list[tuple[Tensor, bool]], tokens: int) -> ActivationLoss:
    """uses: inputs, and whether they are multiplied from the left."""
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)

    def energy(matrix: Tensor) -> float:
        return sum(float((x @ (matrix if on_rows else matrix.T)).square().sum()) for x, on_rows in uses)

    errors = [energy(delta - (u[:, :r] * s[:r]) @ vt[:r]) for r in RANKS]
    return ActivationLoss.from_sums(tokens, energy(delta), errors)


def check(found: ActivationLoss | None, wanted: ActivationLoss) -> None:
    assert found is not None
    assert found.tokens == wanted.tokens
    assert found.energy == pytest.approx(wanted.energy, rel=1e-4)
    assert found.lost == pytest.approx(wanted.lost, rel=1e-4, abs=1e-7)


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}


def delta_of(name: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
    tensor, _, index = name.rstrip("]").partition("[")
    delta = after[tensor] - before[tensor]
    return delta[int(index)] if index else delta


def input_name(name: str) -> str:
    """The name of the oracle's inputs of a matrix of a file."""
    parts = name.split(".experts.")
    if len(parts) == 1 or parts[1].startswith(("gate_up_proj[", "down_proj[")):
        return name
    number, module, _ = parts[1].split(".")
    return f"{parts[0]}.experts.{'down_proj' if module == 'down_proj' else 'gate_up_proj'}[{number}]"


@pytest.mark.parametrize("kind", MODELS)
def test_losses_are_those_of_the_products_themselves(kind: str, tmp_path: Path) -> None:
    base, finetune = write_models(MODELS[kind], tmp_path)
    run = compare(base, finetune)
    inputs, before, after = Inputs(finetune), stored(base), stored(finetune)

    assert len(run.matrices) == len([m for m in run.matrices if m.activation_loss])
    for matrix in run.matrices:
        x = inputs.of(input_name(matrix.name))
        on_rows = kind == "Conv1D" or (kind == "transposed experts" and "experts" in matrix.name)
        check(matrix.activation_loss, expected(delta_of(matrix.name, before, after), [(x, on_rows)], len(x)))
    assert run.calibration_text is not None
    assert (run.calibration_text.documents, run.calibration_text.tokens) == (3, sum(map(len, TEXTS)) + 3)
    assert Results.from_json(run.to_json()) == run


def test_embeddings_count_how_often_a_token_is_read_and_tied_ones_are_the_head_too(tmp_path: Path) -> None:
    for kind, names in (("tied head", ["model.embed_tokens.weight"]), ("untied head", ["lm_head.weight"])):
        folder = tmp_path / kind
        base, finetune = write_models(MODELS[kind], folder)
        [matrix] = compare(base, finetune, include=names, exclude=["*_proj*"]).matrices
        inputs, before, after = Inputs(finetune), stored(base), stored(finetune)
        one_hot = torch.nn.functional.one_hot(inputs.of("ids"), 261).double()
        head = inputs.of("lm_head.weight")
        uses = [(one_hot, True), (head, False)] if kind == "tied head" else [(head, False)]
        check(matrix.activation_loss, expected(delta_of(names[0], before, after), uses, len(head)))


def test_sums_are_over_all_inputs_and_divided_once(tmp_path: Path) -> None:
    base, finetune = write_models(MODELS["experts"], tmp_path)
    run = compare(base, finetune)
    losses = [m.activation_loss for m in run.matrices if m.activation_loss]
    whole = run.totals.whole.activation_loss
    assert whole is not None

    energies = [each.energy * each.tokens for each in losses]
    assert whole.energy * whole.tokens == pytest.approx(sum(energies))
    lost = sum(each.lost[1] * energy for each, energy in zip(losses, energies, strict=True)) / sum(energies)
    assert whole.lost[1] == pytest.approx(lost)
    by_module = [total.activation_loss for total in run.totals.by_module.values()]
    assert sum(each.energy * each.tokens for each in by_module if each) == pytest.approx(sum(energies))


# ---- as a run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_with_text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_models(MODELS["untied head"], tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def whole(llama_with_text: tuple[Path, Path]) -> Results:
    return compare(*llama_with_text)


def losses_of(run: Results) -> list[ActivationLoss | None]:
    return [matrix.activation_loss for matrix in run.matrices]


def test_in_several_passes_the_numbers_are_the_same(
    llama_with_text: tuple[Path, Path], whole: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, finetune = llama_with_text
    monkeypatch.setattr("deltarank.jobs.compare.calibrated_plan._MOST_GRAM_BYTES", 3 * 4 * 32 * 32)
    monkeypatch.setattr("deltarank.jobs.compare.calibrated_plan.available_memory", lambda _: None)
    plan = deltarank.plan(base, finetune, ranks=RANKS, calibration_texts=[base.parent / "text.jsonl"])

    assert plan.to_plain()["calibration"]["passes"] == 6
    assert losses_of(compare(base, finetune)) == losses_of(whole)


@pytest.mark.parametrize("after", [5, 19, 25])
def test_an_interrupted_run_ends_with_the_same_numbers(
    llama_with_text: tuple[Path, Path], whole: Results, after: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        compare(*llama_with_text, output=run, progress=StopAfter(after))

    assert losses_of(compare(*llama_with_text, output=run)) == losses_of(whole)
    assert compare(*llama_with_text, output=run).calibration_text == whole.calibration_text


def test_another_text_is_another_run(llama_with_text: tuple[Path, Path], tmp_path: Path) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("the rain")
    compare(*llama_with_text, output=run, calibration_texts=[text])
    text.write_text("the snow")

    with refused("run-differs", match="calibration text changed"):
        compare(*llama_with_text, output=run, calibration_texts=[text])
    with refused("run-differs"):
        deltarank.compare(*llama_with_text, output=run, ranks=RANKS)


def test_as_many_tokens_as_were_asked_for(llama_with_text: tuple[Path, Path]) -> None:
    run = compare(*llama_with_text, calibration_tokens=50)
    assert run.calibration_text is not None
    assert run.calibration_text.tokens == 50
    assert {each.tokens for each in losses_of(run) if each} == {50 - run.calibration_text.documents}
    assert losses_of(run) == losses_of(compare(*llama_with_text, calibration_tokens=50))


def test_an_adapter_as_finetune_reads_the_text_as_base_plus_adapter(tmp_path: Path) -> None:
    import peft_adapters as made

    base, finetune = write_models(MODELS["untied head"], tmp_path)
    byte_level().save_pretrained(base)
    factors = made.best_factors(base, finetune, 4)
    modules = [f"{word}_proj" for word in ("q", "k", "v", "o", "gate", "up", "down")]
    made.write_adapter(tmp_path / "adapter", factors, r=4, lora_alpha=4, target_modules=modules, task_type="CAUSAL_LM")
    made.merge(base, tmp_path / "adapter", tmp_path / "merged")
    byte_level().save_pretrained(tmp_path / "merged")

    for ours, theirs in zip(
        losses_of(compare(base, tmp_path / "adapter")), losses_of(compare(base, tmp_path / "merged")), strict=True
    ):
        assert ours
        assert theirs
        assert ours.lost[0] == pytest.approx(theirs.lost[0], rel=1e-3)
        assert max(ours.lost[1:]) < 1e-6


def test_what_is_not_in_the_model_is_named(tmp_path: Path) -> None:
    """A matrix that the class of config.json has no place for."""
    base, finetune = write_models(MODELS["untied head"], tmp_path)
    for folder in (base, finetune):
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.mlp.extra_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"] * 2
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    run = compare(base, finetune)

    [extra] = [m for m in run.matrices if "extra_proj" in m.name]
    assert extra.has_losses
    assert extra.activation_loss is None
    assert any("the activation-weighted loss of 1 matrix is not measured" in note for note in run.notes)
    assert run.totals.whole.activation_loss is not None


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_without_a_model_one_error_says_what_to_do(llama_with_text: tuple[Path, Path], tmp_path: Path) -> None:
    base, finetune = llama_with_text
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((finetune / "model.safetensors").read_bytes())

    with refused("calibration-no-model", JobError, match="needs transformers to run the finetune"):
        compare(base, tmp_path, calibration_texts=[base.parent / "text.jsonl"], output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_fit_is_refused_before_it_starts(
    llama_with_text: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltarank.jobs.compare.calibrated_plan.available_memory", lambda _: 500_000_000)
    with refused("not-enough-memory", JobError, match="--calibration-text runs the finetune"):
        compare(*llama_with_text, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_texts_that_cannot_be_read_are_refused(llama_with_text: tuple[Path, Path], tmp_path: Path) -> None:
    with refused("text-not-found", UsageError):
        compare(*llama_with_text, calibration_texts=[tmp_path / "none.txt"])
    (tmp_path / "empty.txt").write_text("")
    with refused("text-short", UsageError):
        compare(*llama_with_text, calibration_texts=[tmp_path / "empty.txt"])
    with refused("bad-number", UsageError, match="--calibration-tokens is 1"):
        compare(*llama_with_text, calibration_tokens=1)


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    base, finetune = write_models(MODELS["untied head"], tmp_path)
    weights = load_file(finetune / "model.safetensors")
    weights["model.layers.0.input_layernorm.weight"][3] = torch.nan
    save_file(weights, finetune / "model.safetensors", metadata={"format": "pt"})
    with refused("outputs-not-finite", JobError, match="activations are NaN or infinite"):
        compare(base, finetune)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_plans_measures_and_prints_both_losses(
    llama_with_text: tuple[Path, Path], command: RunCommand, tmp_path: Path
) -> None:
    base, finetune = llama_with_text
    words = ["compare", base, finetune, "--ranks", "4,16", "--calibration-text", base.parent / "text.jsonl"]
    plan = command(*words, "--dry-run")
    read = "94 tokens in 3 documents, read once by the finetune in float32"
    assert f"calibration text: text.jsonl, {read}; 14 matrices take part" in plan.out

    done = command(*words, "-o", tmp_path / "run", "--no-report", "-q")
    assert done.code == 0, done.err
    whole = Results.load(tmp_path / "run").totals.whole.activation_loss
    assert whole is not None
