"""`deltarank outputs`: its laws on a pair that was really trained, and the command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deltarank
import peft_adapters as made
from commands import RunCommand
from deltarank.demo.model import tokenizer
from deltarank.errors import AdapterError
from deltarank.results import CandidateKind, CandidateResult, Outputs, Results
from pair_of_outputs import ALL, FULL, RANKS, RECIPE, TEXT, make_models, measure, outputs_of
from refusals import refused


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    make_models(home)
    return home


class Shares(deltarank.ProgressListener):
    """The shares of the work that were reported as done."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self.shares.append(share_done)


@pytest.fixture(scope="module")
def shares() -> Shares:
    return Shares()


@pytest.fixture(scope="module")
def found(models: Path, shares: Shares, tmp_path_factory: pytest.TempPathFactory) -> Results:
    metadata = {"calibration": {"method": "kl_distillation"}}
    (models / "adapter" / "deltarank.json").write_text(json.dumps(metadata))
    return measure(
        models,
        output=tmp_path_factory.mktemp("run") / "run",
        adapters=[models / "adapter"],
        models=[models / "finetune"],
        yardsticks=["q8_0", "q4_0"],
        prompts=models / "prompts.txt",
        samples=2,
        max_tokens=8,
        attribute="module",
        progress=shares,
    )


@pytest.mark.usefixtures("found")
def test_all_work_is_reported_and_no_more(shares: Shares) -> None:
    """The weights, which `compare` measures first, and the summary are parts of it."""
    assert shares.shares == sorted(shares.shares)
    assert max(shares.shares[:-1]) < 1 - 1e-6
    assert shares.shares[-1] == pytest.approx(1.0)


def test_a_calibrated_adapter_is_called_so(found: Results) -> None:
    adapter = next(each for each in outputs_of(found).candidates if each.kind is CandidateKind.ADAPTER)
    assert adapter.note == "calibrated: fitted to the finetune's predictions, not to its weights"


def kld(candidate: CandidateResult, text: int = 0) -> float:
    return candidate.logits[text].kld.mean


def test_controls_read_zero(found: Results) -> None:
    again = outputs_of(found).candidate("finetune again")
    whole = outputs_of(found).candidate("whole delta")

    assert kld(again) == again.logits[0].kld.max == 0
    assert again.logits[0].same_top_p.value == 1
    assert kld(whole) < 1e-9
    assert kld(outputs_of(found).candidate("base")) > 0.5


def test_kld_falls_with_rank(found: Results) -> None:
    out = outputs_of(found)
    by_rank = [kld(out.candidate(f"rank {rank}")) for rank in RANKS]

    assert [kld(out.candidate("base")), *by_rank] == sorted([kld(out.candidate("base")), *by_rank], reverse=True)
    assert by_rank[0] > 1e-2


def test_kept_is_one_minus_the_share_of_the_base(found: Results) -> None:
    out = outputs_of(found)
    for candidate in out.candidates:
        kept = candidate.logits[0].kept
        assert kept is not None
        assert kept.value == pytest.approx(1 - kld(candidate) / kld(out.candidate("base")), abs=1e-6)


def test_full_rank_is_the_control_s_floor(found: Results) -> None:
    """Nothing but matrices changed: so is all of D in them."""
    out = outputs_of(found)

    assert kld(out.candidate(f"rank {FULL}")) < 1e-9
    assert kld(out.candidate("any rank")) == 0


def test_what_has_no_factors_stays_lost(models: Path, tmp_path: Path) -> None:
    """Another norm: of any rank, matrices give back nothing of it."""
    other = shutil.copytree(models / "finetune", tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= torch.linspace(0.5, 2, 32)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})

    out = outputs_of(deltarank.outputs(models / "base", other, texts=[models / "text.txt"], samples=0, ranks=(FULL,)))
    assert kld(out.candidate("any rank")) > 1e-2
    assert kld(out.candidate(f"rank {FULL}")) == pytest.approx(kld(out.candidate("any rank")), rel=1e-4)
    assert kld(out.candidate("whole delta")) < 1e-9
    assert kld(out.candidate(f"truncation alone at rank {FULL}")) < 1e-9


def test_truncation_alone_leaves_all_other_tensors_the_finetune_s(models: Path, tmp_path: Path) -> None:
    """The same model from a float64 SVD, run by transformers in float64."""
    for name in ("other", "truncated"):
        shutil.copytree(models / "finetune", tmp_path / name)
    base, weights = (load_file(models / name / "model.safetensors") for name in ("base", "finetune"))
    weights["model.norm.weight"] *= torch.linspace(0.5, 2, 32)
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    for name in (name for name in weights if "_proj" in name):
        u, s, vt = torch.linalg.svd(weights[name].double() - base[name].double())
        weights[name] = (base[name] + (u[:, :4] * s[:4]) @ vt[:4]).float()
    save_file(weights, tmp_path / "truncated" / "model.safetensors", metadata={"format": "pt"})
    p, q = (_log_softmax(models, tmp_path / name) for name in ("other", "truncated"))

    texts = [models / "text.txt"]
    out = outputs_of(deltarank.outputs(models / "base", tmp_path / "other", texts=texts, samples=0, ranks=(4,)))
    truncated = out.candidate("truncation alone at rank 4")
    assert truncated.kind is CandidateKind.TRUNCATION
    assert kld(truncated) == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-4)
    [sentence] = [each for each in out.sentences if each.startswith("Truncation to rank 4 alone costs ")]
    assert "As served, both together cost " in sentence


def test_with_matrices_alone_changed_truncation_is_the_whole_loss(found: Results) -> None:
    out = outputs_of(found)
    [truncated] = [each for each in out.candidates if each.kind is CandidateKind.TRUNCATION]

    assert truncated.rank == 1
    assert truncated.writing is None
    assert kld(truncated) == pytest.approx(kld(out.candidate("rank 1")), rel=1e-4)
    assert not any(each.startswith("Truncation to") for each in out.sentences)
    assert all("truncation alone" not in "".join(sample.answers) for sample in out.samples)


def test_an_adapter_from_disk_is_the_delta_in_memory(found: Results) -> None:
    """Factors by a float64 SVD, read back by our reader, against D_4 from our decomposition."""
    out = outputs_of(found)
    adapter, memory = out.candidate("adapter"), out.candidate("rank 4")

    assert adapter.rank == 4
    assert kld(adapter) == pytest.approx(kld(memory), rel=1e-4)


def test_an_adapter_that_peft_would_refuse_is_refused(models: Path, tmp_path: Path) -> None:
    factors = made.best_factors(models / "base", models / "finetune", 4)
    key = next(key for key in factors if key.endswith("lora_A.weight"))
    broken = factors | {key: factors[key][:, :-1]}
    made.write_adapter(tmp_path / "broken", broken, r=4, lora_alpha=4, target_modules=ALL, task_type="CAUSAL_LM")
    with refused("adapter-refused", AdapterError, match="PEFT does not load this adapter correctly"):
        measure(models, output=tmp_path / "run", adapters=[tmp_path / "broken"], ranks=[4])

    assert not (tmp_path / "run").exists()  # refused before anything was measured


def test_an_adapter_is_what_peft_serves(models: Path, found: Results) -> None:
    """PEFT's own merge, in float64 numpy: mean KLD, same top and perplexity."""
    made.merge(models / "base", models / "adapter", models / "merged")
    p, q = (_log_softmax(models, name) for name in ("finetune", "merged"))
    ids = _ids(models)
    divergences = (np.exp(p) * (p - q)).sum(-1)

    logits = outputs_of(found).candidate("adapter").logits[0]
    assert logits.tokens == len(ids) - 1
    assert logits.kld.mean == pytest.approx(divergences.mean(), rel=1e-4)
    assert logits.kld.max == pytest.approx(divergences.max(), rel=1e-4)
    assert logits.same_top_p.value == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert logits.ppl == pytest.approx(np.exp(-q[range(len(ids) - 1), ids[1:]].mean()), rel=1e-4)


def _ids(models: Path) -> list[int]:
    return [256, *(models / "text.txt").read_bytes()]


def _log_softmax(models: Path, name: str | Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float64)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([_ids(models)])).logits[0, :-1]
    return torch.log_softmax(logits, -1).numpy()


def test_another_checkpoint_and_yardsticks(found: Results) -> None:
    out = outputs_of(found)

    assert kld(out.candidate("model finetune")) == 0
    assert 0 < kld(out.candidate("q8_0")) < kld(out.candidate("q4_0")) < kld(out.candidate("rank 1"))
    assert {c.kind for c in out.candidates} == set(CandidateKind)


def test_its_own_answers_are_a_text_and_everyone_writes(found: Results) -> None:
    out = outputs_of(found)
    own = out.texts[1]

    assert (own.name, own.own, own.documents) == ("its own answers", True, 4)
    assert out.candidate("base").logits[1].tokens_to_tell is not None
    assert out.candidate("base").logits[0].tokens_to_tell is None
    assert out.again is not None
    assert all(c.writing is not None for c in out.candidates if c.kind.answers_prompts)
    assert [sample.prompt for sample in out.samples] == ["the rain", "the old man"]
    assert out.samples[0].answers["finetune"] == out.samples[0].answers["q8_0"]
    assert out.samples[0].further["finetune"] == out.samples[0].further["q8_0"]
    assert {len(out.samples[1].all_answers(name)) for name in ("finetune", "finetune again", "base", "rank 4")} == {2}
    assert "".join(out.excerpts[0].pieces).endswith(TEXT + TEXT.upper())


def test_attribution_truncates_one_module_at_a_time(models: Path, found: Results) -> None:
    (attribution,) = outputs_of(found).attribution
    before, after = (load_file(models / name / "model.safetensors") for name in ("base", "finetune"))
    assert attribution.text == "its own answers"
    assert len(attribution.parts) == 7
    for part in attribution.parts:
        names = [f"model.layers.{layer}.{part.name}.weight" for layer in (0, 1)]
        spectra = [torch.linalg.svdvals(after[name].double() - before[name].double()) for name in names]
        assert part.lost == pytest.approx(sum(float((s[attribution.rank :] ** 2).sum()) for s in spectra), rel=1e-4)
    assert [part.kld for part in attribution.parts] == sorted((p.kld for p in attribution.parts), reverse=True)
    assert attribution.rank_correlation is not None
    [all_parts] = [each for each in outputs_of(found).candidates if each.kind is CandidateKind.TRUNCATION]
    on_answers = all_parts.logits[1]
    assert (attribution.rank, attribution.text) == (all_parts.rank, on_answers.text)
    bounds = (attribution.together, attribution.together_low, attribution.together_high)
    assert bounds == pytest.approx((on_answers.kld.mean, on_answers.kld.low, on_answers.kld.high))
    for part in attribution.parts:
        assert part.low is not None
        assert part.high is not None
        assert part.low <= part.kld <= part.high


@pytest.mark.slow
def test_swapping_in_place_is_loading_anew(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"attribute": "layer", "ranks": (1,)}
    in_place = outputs_of(measure(models, **options)).attribution
    monkeypatch.setattr("deltarank.jobs.outputs.attribution.file_tensor_names", lambda *_: None)

    assert outputs_of(measure(models, **options)).attribution == in_place


def test_a_model_that_does_not_fit_is_streamed_with_the_same_numbers(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"attribute": "module", "ranks": (4,), "adapters": [models / "adapter"], "yardsticks": ["q8_0"]}
    whole = outputs_of(measure(models, **options))
    monkeypatch.setattr("deltarank.jobs.outputs.job.available_memory", lambda _: 100_000)
    monkeypatch.setattr("deltarank.jobs.outputs.loaded_model.load_model", _not_to_be_called)
    streamed = outputs_of(measure(models, **options))

    for ours, theirs in zip(streamed.candidates, whole.candidates, strict=True):
        assert kld(ours) == pytest.approx(kld(theirs), rel=1e-4, abs=1e-9)
    assert streamed.attribution[0].together == pytest.approx(whole.attribution[0].together, rel=1e-4)
    with refused("cannot-write-streamed"):
        measure(models, samples=1)


def _not_to_be_called(*_: object, **__: object) -> None:
    raise AssertionError("a streamed model was loaded whole")


def test_outputs_are_added_to_the_run_and_not_measured_twice(models: Path, found: Results, tmp_path: Path) -> None:
    run = tmp_path / "run"
    deltarank.compare(models / "base", models / "finetune", output=run, ranks=[4])
    first = measure(models, output=run, ranks=[4])

    assert Results.load(run) == first
    assert not (run / "outputs.partial").exists()
    assert first.matrices == deltarank.open_results(run).matrices
    assert measure(models, output=run, ranks=[4]) == first
    with refused("run-differs", match="seed: 0 in that run, 1 now"):
        measure(models, output=run, ranks=[4], seed=1)
    assert measure(models, output=run, ranks=[4], batch=1) == first
    replaced = measure(models, output=run, ranks=[1], force=True)
    assert replaced.matrices == first.matrices
    assert outputs_of(replaced).candidate("rank 1")


def test_a_quick_measurement_says_what_it_leaves_out_and_is_replaced(models: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick = {"quick": True, "prompts": models / "prompts.txt", "max_tokens": 8, "output": run}
    first = outputs_of(deltarank.outputs(models / "base", models / "finetune", **quick))  # type: ignore[arg-type]

    assert [each.name for each in first.candidates] == ["finetune again", "whole delta", "base", "rank 64", "any rank"]
    assert first.texts[0].documents == 2
    assert first.notes[0].startswith("a quick measurement: rank 64, 1 answer of up to 8 tokens to each of 2 prompts;")
    assert [each.name for each in first.candidates if each.writing] == ["base", "rank 64"]
    assert {*first.samples[0].answers} == {"finetune", "finetune again", "base", "rank 64"}
    whole = outputs_of(measure(models, output=run, ranks=[4]))
    assert whole.candidate("rank 4")
    assert not any("quick" in note for note in whole.notes)
    with refused("run-differs"):
        deltarank.outputs(models / "base", models / "finetune", **quick)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_ends_with_the_same_numbers(models: Path, tmp_path: Path) -> None:
    words = ["--samples", "1", "--max-tokens", "8", "--ranks", "1,4,16", "--prompts", models / "prompts.txt"]
    command = ["outputs", models / "base", models / "finetune", "--text", models / "text.txt", *words, "-o"]
    run = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "deltarank", *map(str, command), str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    for _ in range(600):
        if any(run.glob("outputs.partial/scores-002/*.npz")) or child.poll() is not None:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    scored = sorted(run.glob("outputs.partial/scores-00[01]/*.npz"))  # the third may have been killed within a batch
    assert len(scored) == 6
    kept = {path: path.stat().st_mtime_ns for path in scored}

    stamps: dict[Path, int] = {}

    class Spy(deltarank.ProgressListener):
        def finished(self, name: str, seconds_left: float, share_done: float) -> None:
            stamps.update({path: path.stat().st_mtime_ns for path in kept if path.exists()})

    options = {"samples": 1, "max_tokens": 8, "ranks": (1, 4, 16), "prompts": models / "prompts.txt"}
    resumed = outputs_of(measure(models, output=run, progress=Spy(), **options))
    uninterrupted = outputs_of(measure(models, **options))

    assert stamps == kept
    assert _numbers(resumed) == _numbers(uninterrupted)


def _numbers(out: Outputs) -> object:
    plain = out.to_plain()
    for candidate in plain["candidates"]:
        del candidate["seconds"]
    return {key: value for key, value in plain.items() if key != "settings"}


# ---- inputs that are refused


@pytest.mark.parametrize(
    ("options", "slug"),
    [
        ({"texts": []}, "nothing-to-read"),
        ({"ranks": [0]}, "bad-ranks"),
        ({"dtype": "int4"}, "bad-dtype"),
        ({"server": "nobody"}, "bad-server"),
        ({"attribute": "matrix"}, "bad-unit"),
        ({"samples": -1}, "bad-number"),
        ({"yardsticks": ["q9"]}, "no-such-yardstick"),
        ({"texts": ["/nowhere.txt"]}, "text-not-found"),
    ],
)
def test_bad_input(models: Path, options: dict[str, object], slug: str) -> None:
    with refused(slug):
        measure(models, **options)


def test_a_model_of_another_tokenizer_is_refused(models: Path, tmp_path: Path) -> None:
    other = shutil.copytree(models / "finetune", tmp_path / "other")
    file = other / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    data = json.loads(text)
    data["model"]["vocab"]["a"], data["model"]["vocab"]["b"] = 98, 97
    file.write_text(json.dumps(data), encoding="utf-8")

    with refused("tokenizers-differ") as caught:
        measure(models, models=[other])
    assert "2 tokens" in caught.value.message


def test_a_longer_vocabulary_is_noted_and_common_tokens_are_compared(models: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    model = AutoModelForCausalLM.from_pretrained(models / "finetune")
    model.resize_token_embeddings(264, mean_resizing=False)
    model.save_pretrained(longer)
    tokenizer(RECIPE).save_pretrained(longer)

    out = outputs_of(deltarank.outputs(models / "base", longer, texts=[models / "text.txt"], samples=0, ranks=(FULL,)))
    assert any("259 tokens in the base, 264 in the finetune" in note for note in out.notes)
    assert kld(out.candidate("finetune again")) == 0
    assert np.isfinite(kld(out.candidate("base")))


def test_nan_in_the_finetune_is_an_error(models: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(models / "finetune", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})

    with refused("outputs-not-finite"):
        deltarank.outputs(
            models / "base", broken, texts=[models / "text.txt"], samples=0, ranks=(1,), output=tmp_path / "run"
        )
    assert not (tmp_path / "run" / "outputs.partial").exists()


def test_prompts_without_room_are_refused_before_anything_is_read(models: Path, tmp_path: Path) -> None:
    """One's own must all fit; of those built in, at least one."""
    (tmp_path / "long.txt").write_text("short\n" + "long " * 60)
    for options in ({"prompts": tmp_path / "long.txt", "max_tokens": 8}, {"max_tokens": 250}):
        with refused("prompt-length"):
            deltarank.plan_outputs(models / "base", models / "finetune", **options)


# ---- the command


def test_the_command_writes_the_page(models: Path, tmp_path: Path, command: RunCommand) -> None:
    options = ["--text", models / "text.txt", "--samples", 0, "--ranks", 4, "-o", tmp_path / "run"]
    done = command("outputs", models / "base", models / "finetune", *options, "--json", "-q")

    assert (done.code, done.err) == (0, "")
    assert [c["name"] for c in json.loads(done.out)["outputs"]["candidates"]][2:5] == ["base", "rank 4", "any rank"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_dry_run_has_figures_and_reads_no_weight(models: Path, command: RunCommand) -> None:
    options = ["--dry-run", "--yardstick", "q8_0,q4_0", "--max-tokens", 8]
    done = command("outputs", models / "base", models / "finetune", *options)

    assert done.code == 0
    assert "prompts x 4, up to 8 tokens each" in done.out
    assert "of 24 built-in prompts are left out: together with an answer of 8 tokens they exceed" in done.out
    assert "loaded whole, one after another" in done.out
    assert "q4_0" in done.out


def test_a_quick_dry_run_has_other_defaults_but_takes_what_is_given(models: Path, command: RunCommand) -> None:
    words = ("outputs", models / "base", models / "finetune", "--dry-run", "--json", "--quick")
    settings = json.loads(command(*words).out)["settings"]
    assert (settings["ranks"], settings["samples"], settings["max_tokens"]) == ([64], 1, 64)
    settings = json.loads(command(*words, "--ranks", "4", "--samples", "4").out)["settings"]
    assert (settings["ranks"], settings["samples"], settings["max_tokens"]) == ([4], 4, 64)


def test_a_dry_run_checks_the_folder_of_the_run(models: Path, tmp_path: Path, command: RunCommand) -> None:
    """One with something else; one with the weights, or the outputs, of a run with other inputs or options.

    Beside such a run, the plan is that of a new one.
    """
    pair = models / "base", models / "finetune"
    words = ["outputs", *pair, "--samples", 0, "--text", models / "text.txt", "--dry-run", "-o"]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("the only copy")
    deltarank.outputs(*pair, texts=[models / "text.txt"], samples=0, ranks=(2,), output=tmp_path / "run")
    deltarank.compare(pair[1], pair[0], ranks=(2,), output=tmp_path / "exchanged")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    for folder, slug in (("used", "output-exists"), ("run", "run-differs"), ("exchanged", "run-differs")):
        done = command(*words, tmp_path / folder, "--ranks", 3, "--seed", 1)
        assert (done.code, done.out == "") == ((1, True) if folder == "used" else (0, False)), folder
        assert (f"explain {slug}" in done.err) == (folder == "used")
        assert ("would stop" in done.err) == (folder != "used")
        assert command(*words, tmp_path / folder, "--ranks", 3, "--seed", 1, "--force").code == 0
    for folder in ("run", "new"):
        assert command(*words, tmp_path / folder, "--ranks", 2).code == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
