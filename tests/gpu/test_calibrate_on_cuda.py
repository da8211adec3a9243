"""`extract --calibrate` on a GPU: the divergences of the CPU, with the base in memory and read layer by layer."""

import json
from pathlib import Path

import pytest
import torch

import deltarank
from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.jobs.calibrate.placement import Footprint
from deltarank.results import WeightPlacement
from tiny_architectures import architecture, write_pair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # in PEFT
]

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}


@pytest.mark.parametrize("placement", list(WeightPlacement))
def test_a_gpu_gives_the_divergences_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: WeightPlacement
) -> None:
    write_pair(architecture("llama", **SIZES, **TOKENS), tmp_path)
    for name in ("base", "finetune"):
        tokenizer(Recipe()).save_pretrained(tmp_path / name)
    texts = ({"text": f"the {i}th traveller went {i * 7} miles along the river and then home"} for i in range(60))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(each) + "\n" for each in texts))
    monkeypatch.setattr(Footprint, "choose", lambda *_: placement)
    on_cpu, on_gpu = (
        deltarank.extract_calibrated(
            tmp_path / "base",
            tmp_path / "finetune",
            output=tmp_path / device,
            rank=2,
            dtype="float32",
            calibrate=[tmp_path / "text.jsonl"],
            steps=10,
            device=device,
        ).calibration.held_out
        for device in ("cpu", "cuda")
    )
    assert on_gpu.kld_plain == pytest.approx(on_cpu.kld_plain, rel=1e-2)
    assert on_gpu.kld_calibrated == pytest.approx(on_cpu.kld_calibrated, rel=5e-2)
