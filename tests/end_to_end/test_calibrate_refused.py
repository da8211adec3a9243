"""What `deltarank extract --calibrate` refuses, and with which message."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from trained_pair import RECIPE, SIZES, calibrate, write_models
from transformers import BertConfig, BertForMaskedLM

import deltarank
from commands import RunCommand
from deltarank.demo.model import tokenizer
from refusals import refused
from tiny_architectures import write_pair


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("calibrate"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond that size fail, as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestRefused:
    @pytest.mark.parametrize(
        ("model", "tensor", "value", "message"),
        [
            pytest.param("base", "model.norm.weight", torch.inf, "nothing|no start", id="a base with infinity"),
            pytest.param("finetune", "lm_head.weight", torch.nan, "The finetune's predictions", id="a head with NaN"),
        ],
    )
    def test_weights_that_are_not_finite(self, models: Path, tmp_path: Path, model, tensor, value, message):
        shutil.copytree(models, tmp_path / "pair")
        file = tmp_path / "pair" / model / "model.safetensors"
        weights = load_file(file)
        weights[tensor][3] = value
        save_file(weights, file, {"format": "pt"})
        with refused("outputs-not-finite", match=message):
            calibrate(tmp_path / "pair", tmp_path / "adapter")

    @pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files here")
    @pytest.mark.parametrize("limit", [20_000, 40_000], ids=["at the predictions", "at the state of the training"])
    def test_a_full_disk(self, models: Path, tmp_path: Path, limit: int):
        with files_of_at_most(limit), refused("output-unwritable"):
            calibrate(models, tmp_path / "adapter")

    def test_a_disk_that_is_too_small_leaves_nothing_behind(self, models: Path, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("deltarank.jobs.calibrate.plan.CalibrationPlan.disk_bytes", 1e18)
        with refused("output-unwritable", match="Not enough disk space"):
            calibrate(models, tmp_path / "adapter")
        assert not any(tmp_path.iterdir())

    def test_an_encoder(self, models: Path, tmp_path: Path):
        """transformers builds BERT as a language model."""
        sizes = {**SIZES, "vocab_size": 259}
        write_pair(lambda: BertForMaskedLM(BertConfig(**sizes)), tmp_path)
        for each in ("base", "finetune"):
            tokenizer(RECIPE).save_pretrained(tmp_path / each)
        shutil.copy(models / "text.jsonl", tmp_path)
        with refused("not-a-language-model", match="predicts no next token"):
            calibrate(tmp_path, tmp_path / "adapter", server="peft")

    def test_a_name_that_is_too_long(self, models: Path, tmp_path: Path):
        with refused("output-unwritable"):
            calibrate(models, tmp_path / ("a" * 300))

    def test_a_quantised_base_is_to_be_dequantised(self, models: Path, tmp_path: Path):
        """Plain extraction cannot read it either."""
        shutil.copytree(models, tmp_path / "pair")
        weights = load_file(tmp_path / "pair" / "base" / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        packed = {name: torch.zeros(768, 1, dtype=torch.uint8), f"{name}.absmax": torch.ones(24)}
        save_file(weights | packed, tmp_path / "pair" / "base" / "model.safetensors", {"format": "pt"})
        with refused("quantised-model") as caught:
            calibrate(tmp_path / "pair", tmp_path / "adapter")
        assert "dequantise it" in caught.value.cure

    @pytest.mark.parametrize("place", [".", ".."])
    def test_a_place_without_a_name(self, models: Path, place: str):
        with refused("output-exists"):
            calibrate(models, Path(place))
        with refused("output-exists"):
            deltarank.extract(models / "base", models / "finetune", output=place, rank=2)

    def test_a_text_is_missed_before_anything_is_extracted(self, models: Path, tmp_path: Path):
        (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "a question"}]}\n' * 9)
        with refused("text-short", match="1 text is left out"):
            calibrate(models, tmp_path / "adapter", calibrate=[tmp_path / "chat.jsonl"])
        assert not (tmp_path / "adapter.calibrating" / "adapters" / "plain").exists()

    def test_short_texts(self, models: Path, tmp_path: Path):
        (tmp_path / "short.txt").write_text("too short\n")
        with refused("text-short"):
            calibrate(models, tmp_path / "adapter", calibrate=[tmp_path / "short.txt"])
        assert [each.name for each in tmp_path.iterdir()] == ["short.txt"]

    def test_what_is_not_a_number_of_steps_or_a_rank(self, models: Path, tmp_path: Path):
        with refused("bad-number"):
            calibrate(models, tmp_path / "adapter", steps=-1)
        with refused("bad-number"):
            calibrate(models, tmp_path / "adapter", calibration_tokens=10)
        with refused("bad-ranks"):
            calibrate(models, tmp_path / "adapter", rank=None, max_error=0.3)
        with refused("text-not-found"):
            calibrate(models, tmp_path / "adapter", calibrate=[tmp_path / "none"])

    def test_the_options_of_a_calibration_without_one(self, models: Path, command: RunCommand):
        run = command("extract", models / "base", models / "finetune", "--steps", 5)
        assert run.code == 2
        assert "--steps needs --calibrate" in run.err

    def test_a_dry_run_refuses_what_would_be_refused(self, models: Path, tmp_path: Path, command: RunCommand):
        (tmp_path / "short.txt").write_text("too short\n")
        words = ["extract", models / "base", models / "finetune", "-r", 2, "--dry-run", "--calibrate"]
        run = command(*words, tmp_path / "short.txt")
        assert run.code == 2
        assert "too short: 1 different document" in run.err
        explained = " ".join(command("explain", "text-short").out.split())
        assert all("at least 8 documents with 1,000 tokens" in each.lower() for each in (run.err, explained))
        assert command(*words, models / "text.jsonl").code == 0

    def test_own_answers_that_do_not_fit_leave_nothing_behind(self, models: Path, tmp_path: Path):
        """And beside a file they are left out, with a note."""
        shutil.copytree(models, tmp_path / "pair")
        for each in ("base", "finetune"):
            config = tmp_path / "pair" / each / "config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 100}))
        with refused("prompt-length", match="built-in prompts fit"):
            calibrate(tmp_path / "pair", tmp_path / "adapter", calibrate=["own"])
        assert [each.name for each in tmp_path.iterdir()] == ["pair"]
        text = str(tmp_path / "pair" / "text.jsonl")
        models = tmp_path / "pair" / "base", tmp_path / "pair" / "finetune"
        plan = deltarank.plan_calibration(*models, rank=2, calibrate=["own", text])
        assert "Only the files are used, and no answers of the finetune." in plan.lines()
        assert plan.options.calibrate == (text,)

    def test_a_dry_run_says_memory_disk_and_time(self, models: Path, command: RunCommand):
        words = ["extract", models / "base", models / "finetune", "-r", 2, "--calibrate", "own", "--dry-run"]
        run = command(*words)
        assert run.code == 0
        assert "of memory" in run.out
        assert "of disk and about " in run.out
        assert "the finetune's own answers" in run.out
        assert json.loads(command(*words, "--json").out)["trained"] > 0

    def test_a_short_text_needs_no_space_for_all_the_tokens_that_it_may_have(self, models: Path):
        text = models / "text.jsonl"
        plans = [
            deltarank.plan_calibration(
                models / "base", models / "finetune", rank=2, calibrate=[text], calibration_tokens=tokens
            )
            for tokens in (10**12, text.stat().st_size)
        ]
        assert plans[0].disk_bytes == plans[1].disk_bytes
        assert plans[0].seconds == plans[1].seconds
        assert any("at most about" in line for line in plans[0].lines())
