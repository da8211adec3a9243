"""`deltarank extract --calibrate`: laws on a pair that was really trained, with real PEFT as the judge."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import kl_div
from trained_pair import RECIPE, SIZES, TOKENS, calibrate, sentences, train, write_models
from transformers import AutoModelForCausalLM

import deltarank
from commands import RunCommand
from deltarank.demo.model import tokenizer
from deltarank.jobs.calibrate.documents import encode, split_records
from deltarank.jobs.calibrate.placement import Footprint
from deltarank.results import CalibrationMethod, WeightPlacement, figure, percent
from refusals import refused
from tiny_architectures import architecture, write_pair

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("calibrate"))


@pytest.fixture(scope="module")
def calibrated(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("calibrated") / "adapter"
    calibrate(models, output)
    return output


class StoppedError(Exception):
    pass


class Heard(deltarank.ProgressListener):
    """What a user is told."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.names: set[str] = set()

    def noted(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self.names.add(name)


class StopsInTheMiddle(deltarank.ProgressListener):
    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        if name.startswith("step 13 "):
            raise StoppedError


def divergence(home: Path, adapter: Path, teacher=None) -> float:
    """Mean KL(finetune || base + adapter) over the documents that are only scored, by transformers and PEFT alone."""
    base, finetune = (AutoModelForCausalLM.from_pretrained(home / each).eval() for each in ("base", "finetune"))
    finetune = teacher or finetune
    served = PeftModel.from_pretrained(base, adapter).eval()
    records = [json.loads(line) for line in (home / "text.jsonl").read_text().splitlines()]
    held_out = split_records(records, tokenizer(RECIPE), tokens=20_000, context=512, seed=0).score
    nats, tokens = 0.0, 0
    for document in (each for record in held_out for each in encode(record, tokenizer(RECIPE), context=512)):
        ids = torch.tensor([document.ids])
        with torch.no_grad():
            log_p, log_q = (model(ids).logits[0, :-1].double().log_softmax(-1) for model in (finetune, served))
        scored = torch.tensor(document.scored[1:])
        nats += kl_div(log_q[scored], log_p[scored], log_target=True, reduction="sum").item()
        tokens += int(scored.sum())
    return nats / tokens


class TestReached:
    def test_the_stated_divergences_are_those_of_transformers_and_peft(self, models: Path, calibrated: Path, tmp_path):
        stated = deltarank.ExtractedAdapter.load(calibrated).calibration
        assert stated is not None
        deltarank.extract(models / "base", models / "finetune", output=tmp_path / "plain", rank=2, dtype="float32")
        assert stated.held_out.kld_calibrated == pytest.approx(divergence(models, calibrated), rel=1e-3)
        assert stated.held_out.kld_plain == pytest.approx(divergence(models, tmp_path / "plain"), rel=1e-3)

    def test_it_is_nearer_to_the_finetune_than_plain_extraction(self, calibrated: Path):
        adapter = deltarank.ExtractedAdapter.load(calibrated)
        assert adapter.calibration is not None
        held_out = adapter.calibration.held_out
        assert adapter.calibration.method is CalibrationMethod.KL_DISTILLATION
        assert held_out.kld_calibrated < 0.6 * held_out.kld_plain < held_out.kld_base
        assert held_out.gain == pytest.approx(1 - held_out.kld_calibrated / held_out.kld_plain)
        assert held_out.low < held_out.kld_calibrated < held_out.high  # type: ignore[operator]

    def test_of_the_weights_it_keeps_less_and_says_why(self, models: Path, calibrated: Path, tmp_path: Path):
        adapter = deltarank.ExtractedAdapter.load(calibrated)
        plain = deltarank.extract(models / "base", models / "finetune", output=tmp_path / "plain", rank=2)
        assert adapter.budget.kept < plain.budget.kept
        shares = adapter.budget
        assert shares.kept + shares.truncated + shares.rounded + shares.left_out + shares.fitted == pytest.approx(1)
        assert "given up to fit the predictions" in adapter.sentence

    def test_verify_knows_it(self, models: Path, calibrated: Path):
        fit = deltarank.verify(models / "base", models / "finetune", calibrated)
        kept = deltarank.ExtractedAdapter.load(calibrated).budget.kept
        assert fit.kind == "calibrated"
        assert "is calibrated" in fit.sentences[0]
        assert 1 - (fit.whole.share_lost or 0) == pytest.approx(kept, abs=1e-6)

    def test_the_terminal_says_what_was_reached_and_on_how_much(self, models, calibrated, tmp_path, command):
        """Of an adapter that is there already, the same is printed again."""
        shutil.copytree(calibrated, tmp_path / "adapter")
        options = ("-r", 2, "--steps", 20, "--dtype", "float32", "--calibrate", models / "text.jsonl")
        ran = command("extract", models / "base", models / "finetune", *options, "-o", tmp_path / "adapter")
        assert "nothing to do" in ran.err
        said, reached = " ".join(ran.out.split()), deltarank.ExtractedAdapter.load(calibrated).calibration
        assert all(sentence in said for sentence in reached.sentences)
        held = reached.held_out
        assert (
            f"That is on {held.documents} documents (95 % interval {figure(held.low)} to {figure(held.high)})" in said
        )
        assert f"{percent(held.gain)} below plain extraction at this rank (95 % interval" in said
        assert f"On another kind of text ({reached.other_text.documents} documents in" in said
        assert said.index("given up to fit the predictions ") < said.index("% left out")

    def test_the_model_card_says_what_was_reached(self, models: Path, calibrated: Path):
        card = (calibrated / "README.md").read_text()
        assert "nats per token from the finetune, on text that it was not fitted to" in card
        assert "another kind (built-in passages)" in card
        assert "While it was fitted, the weights were in memory in float32." in card


class TestHeldOut:
    def test_the_documents_that_are_only_scored_can_be_had_again(self, models: Path, calibrated: Path):
        text = models / "text.jsonl"
        records = [json.loads(line) for line in text.read_text().splitlines()]
        found = deltarank.held_out_documents(models / "base", models / "finetune", rank=2, calibrate=[text])
        assert found == list(split_records(records, tokenizer(RECIPE), tokens=20_000, context=512, seed=0).score)
        assert len(found) == deltarank.ExtractedAdapter.load(calibrated).calibration.held_out.documents
        with refused("text-not-found", match="not kept"):
            deltarank.held_out_documents(models / "base", models / "finetune", rank=2, calibrate=["own"])


class TestSame:
    def test_no_step_gives_the_plain_adapter_to_the_bit(self, models: Path, tmp_path: Path, command: RunCommand):
        output, text = tmp_path / "adapter", models / "text.jsonl"
        words = ["-r", 2, "--calibrate", text, "--steps", 0, "--dtype", "float32", "-o", output]
        run = command("extract", models / "base", models / "finetune", *words)
        assert f"Writing to {output}.\n" in run.err
        assert "The finetune reads 38 documents." in run.err
        assert "Measure its behaviour" not in run.err
        adapter = deltarank.ExtractedAdapter.load(output)
        deltarank.extract(models / "base", models / "finetune", output=tmp_path / "plain", rank=2, dtype="float32")
        name = "adapter_model.safetensors"
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
        assert adapter.calibration.method is CalibrationMethod.PLAIN
        assert adapter.calibration.rank_equivalent == 2
        assert "No step of gradient descent was made" in adapter.calibration.sentences[-1]

    def test_the_same_options_give_the_same_bytes_also_after_an_interruption(self, models, calibrated, tmp_path):
        with pytest.raises(StoppedError):
            calibrate(models, tmp_path / "adapter", progress=StopsInTheMiddle())
        assert not (tmp_path / "adapter").exists()
        killed_at_the_end = tmp_path / "killed"
        shutil.copytree(tmp_path / "adapter.calibrating", killed_at_the_end / "adapter.calibrating")
        shutil.copytree(calibrated, killed_at_the_end / "adapter")
        (killed_at_the_end / "adapter.calibrating" / "training.pt.1-2.partial").touch()  # killed while it was written
        calibrate(models, killed_at_the_end / "adapter")
        assert [path.name for path in killed_at_the_end.iterdir()] == ["adapter"]
        shutil.rmtree(killed_at_the_end)
        heard = Heard()
        calibrate(models, tmp_path / "adapter", progress=heard)
        assert "The training goes on after step 10 of 20." in heard.sentences
        assert {"scoring the base", "scoring plain extraction", "scoring the calibrated adapter"} <= heard.names
        for tensors in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / "adapter" / tensors).read_bytes() == (calibrated / tensors).read_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

    def test_a_finished_one_is_not_made_again_and_another_is_not_overwritten(
        self, models, calibrated, tmp_path, monkeypatch
    ):
        shutil.copytree(calibrated, tmp_path / "adapter")
        before = (tmp_path / "adapter" / "deltarank.json").stat().st_mtime_ns
        calibrate(models, tmp_path / "adapter")
        monkeypatch.chdir(models)
        calibrate(models, tmp_path / "adapter", calibrate=["text.jsonl"])  # the same text by another path
        assert (tmp_path / "adapter" / "deltarank.json").stat().st_mtime_ns == before
        with refused("output-exists"):
            calibrate(models, tmp_path / "adapter", seed=1)

    def test_what_is_made_from_other_texts_is_not_taken_for_this_one(self, models, calibrated, tmp_path):
        shutil.copytree(calibrated, tmp_path / "adapter")
        before = (models / "text.jsonl").read_text()
        try:
            (models / "text.jsonl").write_text(before + json.dumps({"text": "one more"}) + "\n")
            with refused("output-exists"):
                calibrate(models, tmp_path / "adapter")
        finally:
            (models / "text.jsonl").write_text(before)

    def test_models_in_the_dtype_of_their_files_give_the_same_divergence(
        self, models, calibrated, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(Footprint, "choose", lambda *_: WeightPlacement.STORED)
        ours = calibrate(models, tmp_path / "adapter").calibration
        theirs = deltarank.ExtractedAdapter.load(calibrated).calibration
        assert [ours.placement, theirs.placement] == [WeightPlacement.STORED, WeightPlacement.WHOLE]
        assert ours.held_out.kld_plain == theirs.held_out.kld_plain
        assert ours.held_out.kld_calibrated == pytest.approx(theirs.held_out.kld_calibrated, rel=0.02)
        assert ours.tokens == theirs.tokens
        assert "the weights were in memory in the dtype of their files" in (tmp_path / "adapter/README.md").read_text()

    @pytest.mark.slow
    @pytest.mark.parametrize("placement", [each for each in WeightPlacement if each is not WeightPlacement.WHOLE])
    def test_little_memory_gives_the_same_divergence(self, models, calibrated, tmp_path, monkeypatch, placement):
        """To rounding; and after an interruption the same bytes."""
        monkeypatch.setattr(Footprint, "choose", lambda *_: placement)
        ours = calibrate(models, tmp_path / "adapter").calibration.held_out
        theirs = deltarank.ExtractedAdapter.load(calibrated).calibration.held_out
        assert ours.kld_plain == theirs.kld_plain
        assert ours.kld_calibrated == pytest.approx(theirs.kld_calibrated, rel=0.02)
        with pytest.raises(StoppedError):
            calibrate(models, tmp_path / "again", progress=StopsInTheMiddle())
        calibrate(models, tmp_path / "again")
        files = (tmp_path / each / "adapter_model.safetensors" for each in ("adapter", "again"))
        assert len({file.read_bytes() for file in files}) == 1

    @pytest.mark.slow
    def test_only_a_and_b_differ_from_the_plain_adapter(self, models: Path, tmp_path: Path):
        """Also where PEFT carries embeddings, head and norms whole, of which the head is the last step of the model."""
        calibrate(models, tmp_path / "adapter", server="peft", steps=5)
        deltarank.extract(
            models / "base", models / "finetune", output=tmp_path / "plain", rank=2, dtype="float32", server="peft"
        )
        ours, plain = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("adapter", "plain"))
        assert ours.keys() == plain.keys()
        assert all(torch.equal(ours[name], plain[name]) for name in plain if "lora_" not in name)
        assert any(not torch.equal(ours[name], plain[name]) for name in plain if "lora_" in name)


@pytest.fixture(scope="module")
def lora(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(models / "base"), config)
    train(model, sentences("a star fell"), 40)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_experts_that_peft_fuses_stay_those_of_plain_extraction(models: Path, tmp_path: Path):
    sizes = {**SIZES, **TOKENS, "num_key_value_heads": 4, "num_local_experts": 2, "num_experts_per_tok": 1}
    write_pair(architecture("mixtral", **sizes), tmp_path)
    for each in ("base", "finetune"):
        tokenizer(RECIPE).save_pretrained(tmp_path / each)
    shutil.copy(models / "text.jsonl", tmp_path)
    options = {"server": "peft", "steps": 8, "calibration_tokens": 2000}
    adapter = calibrate(tmp_path, tmp_path / "adapter", **options)
    calibrate(tmp_path, tmp_path / "plain", **options | {"steps": 0})
    ours, plain = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("adapter", "plain"))
    same = {name for name in plain if torch.equal(ours[name], plain[name])}
    assert adapter.calibration.frozen == 24
    assert adapter.calibration.steps
    assert {name for name in plain if "lora_" in name and ".experts." in name} <= same
    assert not {name for name in plain if "lora_" in name and "self_attn" in name} & same
    assert any("24 factors of experts stay" in sentence for sentence in adapter.calibration.sentences)
    with refused("calibration-needs-peft", match="PEFT holds all 24 factors fused"):
        calibrate(tmp_path, tmp_path / "experts", **options, exclude=["*self_attn*"])


class TestAdapterAsFinetune:
    """A LoRA that PEFT trained, at a lower rank. PEFT applies it as the teacher of the oracle."""

    def test_it_is_nearer_than_the_truncated_one_and_the_figures_are_those_of_peft(self, models, lora, tmp_path):
        options = {"rank": 1, "calibrate": [models / "text.jsonl"], "steps": 20, "dtype": "float32"}
        adapter = deltarank.extract_calibrated(models / "base", lora, output=tmp_path / "adapter", **options)
        stated = adapter.calibration.held_out
        teacher = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models / "base"), lora).eval()
        assert stated.kld_calibrated == pytest.approx(divergence(models, tmp_path / "adapter", teacher), rel=1e-3)
        assert stated.kld_calibrated < 0.8 * stated.kld_plain < stated.kld_base

    def test_no_step_is_the_plain_shrinking_to_the_bit(self, models: Path, lora: Path, tmp_path: Path):
        options = {"rank": 2, "dtype": "float32"}
        deltarank.extract_calibrated(
            models / "base", lora, output=tmp_path / "adapter", steps=0, calibrate=[models / "text.jsonl"], **options
        )
        deltarank.extract(models / "base", lora, output=tmp_path / "plain", **options)
        name = "adapter_model.safetensors"
        assert (tmp_path / "adapter" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_where_the_training_diverges_the_last_good_step_is_kept(models: Path, tmp_path: Path, monkeypatch):
    """A step so large that all activations overflow."""
    monkeypatch.setattr("deltarank.jobs.calibrate.schedule.LARGEST_STEP", 1e30)
    monkeypatch.setattr("deltarank.jobs.calibrate.schedule.STEP_SIZE", 1e30)
    warnings: list[str] = []

    class Listener(deltarank.ProgressListener):
        def warned(self, sentence: str) -> None:
            warnings.append(sentence)

    adapter = calibrate(models, tmp_path / "adapter", progress=Listener())
    assert "not finite" in warnings[0]
    assert adapter.calibration.steps_made < 20
    assert adapter.calibration.method is CalibrationMethod.PLAIN
    assert adapter.calibration.held_out.kld_calibrated == adapter.calibration.held_out.kld_plain


@pytest.mark.parametrize(
    "placement", [WeightPlacement.STREAMED, pytest.param(WeightPlacement.STORED, marks=pytest.mark.slow)]
)
def test_where_activations_overflow_later_the_best_step_before_is_kept(models, tmp_path, monkeypatch, placement):
    """With one layer in memory. The step after the twelfth is so large that the activations overflow."""
    monkeypatch.setattr(Footprint, "choose", lambda *_: placement)
    monkeypatch.setattr(
        "deltarank.jobs.calibrate.distill.rate", lambda step, _: min(1.0, step / 10) if step <= 12 else 1e30
    )
    warnings: list[str] = []

    class Listener(deltarank.ProgressListener):
        def warned(self, sentence: str) -> None:
            warnings.append(sentence)

    adapter = calibrate(models, tmp_path / "adapter", progress=Listener())
    assert "ended after step 13, because its loss or gradient was not finite" in warnings[0]
    assert adapter.calibration.placement is placement
    assert adapter.calibration.steps == 10, "the second look: the third is after step 20"
    assert adapter.calibration.steps_made == 13
    assert adapter.calibration.held_out.kld_calibrated < adapter.calibration.held_out.kld_plain


def test_steps_that_are_too_large_are_taken_back_and_smaller_ones_are_made(models: Path, tmp_path: Path, monkeypatch):
    """So large that the first look finds the adapter farther away than plain extraction."""
    monkeypatch.setattr("deltarank.jobs.calibrate.schedule.LARGEST_STEP", 0.8)
    monkeypatch.setattr("deltarank.jobs.calibrate.schedule.STEP_SIZE", 100.0)
    looks: list[float] = []

    class Listener(deltarank.ProgressListener):
        def noted(self, sentence: str) -> None:
            if found := re.search(r"(?:step \d+|extraction): (\S+) nats", sentence):
                looks.append(float(found[1]))

    score = calibrate(models, tmp_path / "adapter", progress=Listener()).calibration.held_out
    plain, first, *_ = looks
    assert first > plain
    assert score.kld_calibrated < score.kld_plain


def test_at_full_rank_with_everything_carried_it_predicts_as_the_finetune(models: Path, tmp_path: Path):
    score = calibrate(models, tmp_path / "adapter", rank=32, server="peft", steps=2).calibration.held_out
    assert score.kld_base > 0.1
    assert score.kld_plain < 1e-8
    assert score.kld_calibrated < 1e-8


def test_no_document_that_is_scored_fits_or_chooses(models: Path, tmp_path: Path, monkeypatch):
    read: list[tuple[int, ...]] = []

    def stop(windows, *_):
        read.extend(tuple(window.ids) for window in windows)
        raise StoppedError

    monkeypatch.setattr("deltarank.jobs.calibrate.job.Lesson", stop)
    with pytest.raises(StoppedError):
        calibrate(models, tmp_path / "adapter")
    lines = (tmp_path / "adapter.calibrating" / "held-out.jsonl").read_text().splitlines()
    scored = [each.ids for line in lines for each in encode(json.loads(line), tokenizer(RECIPE), context=512)]
    assert len(read) + len(scored) == len(sentences(""))
    assert not {tuple(ids) for ids in scored} & set(read)


def test_a_tokenizer_that_differs_is_named_before_the_work_begins(models: Path, tmp_path: Path):
    shutil.copytree(models, tmp_path / "pair")
    other = tokenizer(RECIPE)
    other.add_tokens(["<new>"])
    other.save_pretrained(tmp_path / "pair" / "finetune")

    class Listener(deltarank.ProgressListener):
        def warned(self, sentence: str) -> None:
            assert "1 token only in the finetune's (such as '<new>')" in sentence
            raise StoppedError

    with pytest.raises(StoppedError):
        calibrate(tmp_path / "pair", tmp_path / "adapter", progress=Listener())
    assert not (tmp_path / "adapter.calibrating").exists()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["portable", "peft"])
def test_a_finetune_in_float16_gives_an_adapter_in_float16(models: Path, tmp_path: Path, server: str):
    """And the tensors that PEFT's adapter has whole, in float16 too, run beside a base in float32."""
    shutil.copytree(models, tmp_path / "pair")
    weights = load_file(models / "finetune" / "model.safetensors")
    half = {name: each.half() for name, each in weights.items()}
    save_file(half, tmp_path / "pair" / "finetune" / "model.safetensors", {"format": "pt"})
    adapter = calibrate(tmp_path / "pair", tmp_path / "adapter", dtype=None, server=server)
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {each.dtype for each in factors.values()} == {torch.float16}
    assert adapter.calibration.held_out.kld_calibrated < 0.7 * adapter.calibration.held_out.kld_plain


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, 8])
def test_from_a_merged_lora_it_is_not_farther_than_plain_extraction(models: Path, lora: Path, tmp_path: Path, rank):
    """At the rank of the LoRA, plain extraction is exact up to the rounding of the merge."""
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models / "base"), lora).merge_and_unload()
    shutil.copytree(models, tmp_path / "pair")
    merged.bfloat16().save_pretrained(tmp_path / "pair" / "finetune")
    score = calibrate(tmp_path / "pair", tmp_path / "adapter", rank=rank).calibration.held_out
    assert score.kld_plain < 0.1 * score.kld_base
    assert score.kld_calibrated < 1.02 * score.kld_plain


class TestOwnAnswers:
    @pytest.mark.slow
    def test_it_needs_no_text(self, models: Path, tmp_path: Path):
        adapter = calibrate(models, tmp_path / "adapter", calibrate=["own"], steps=3, calibration_tokens=2000)
        assert adapter.calibration.texts == ("own",)
        assert adapter.calibration.held_out.documents >= 2
