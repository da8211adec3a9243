"""`outputs` on a GPU: the numbers of the CPU, whole and streamed."""

from pathlib import Path

import pytest
import torch

import deltarank
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.results import Results
from tiny_architectures import architecture, write_pair

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def measure(home: Path, device: str) -> Results:
    return deltarank.outputs(
        home / "base",
        home / "finetune",
        ranks=(1, 4),
        yardsticks=["q8_0"],
        texts=[home / "text.txt"],
        samples=0,
        attribute="module",
        device=device,
        dtype="float32",
    )


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}


@pytest.mark.parametrize("memory", [None, 100_000])
def test_a_gpu_gives_the_numbers_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int | None
) -> None:
    """`memory`: bytes that the GPU is said to have; with few, models are streamed."""
    write_pair(architecture("llama", **SIZES, **TOKENS), tmp_path)
    for name in ("base", "finetune"):
        tokenizer(Recipe()).save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_text("the rain fell on the stones and the old man counted them\n")
    on_cpu = measure(tmp_path, "cpu").outputs
    if memory is not None:
        monkeypatch.setattr("deltarank.jobs.outputs.job.available_memory", lambda _: memory)
    on_gpu = measure(tmp_path, "cuda").outputs

    assert on_cpu is not None
    assert on_gpu is not None
    for ours, theirs in zip(on_gpu.candidates, on_cpu.candidates, strict=True):
        assert ours.logits[0].kld.mean == pytest.approx(theirs.logits[0].kld.mean, rel=1e-3, abs=1e-9)
