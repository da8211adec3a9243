"""Quantised checkpoints on the Hub: read by byte ranges, they are the numbers of the local file, bit for bit."""

import hashlib
from pathlib import Path

import torch
from files import numbers, save, stored
from quantised import fp8_blocks, weights
from torch import Tensor

from deltarank.checkpoints import open_checkpoint
from hub import Client, FakeHub

CONFIGS = {
    "org/fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "org/gptq": {"quant_method": "gptq", "bits": 4},
    "org/mxfp4": {"quant_method": "mxfp4"},
}


def tensors(repo: str) -> dict[str, Tensor]:
    """Large enough that files are not fetched whole with their headers."""
    made = {"model.embed_tokens.weight": numbers(400, 512), "model.norm.weight": numbers(512)}
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp"
        if repo == "org/fp8":
            codes, scales = fp8_blocks(weights(700, 520, seed=layer), (128, 128))
            made |= {f"{stem}.up_proj.weight": codes, f"{stem}.up_proj.weight_scale_inv": scales}
        elif repo == "org/gptq":
            draw = torch.Generator().manual_seed(layer)
            words = torch.randint(-(2**31), 2**31, (64, 640), generator=draw).to(torch.int32)
            made |= {f"{stem}.up_proj.qweight": words, f"{stem}.up_proj.scales": numbers(4, 640).half()}
            made[f"{stem}.up_proj.qzeros"] = words[:4, :80].clone()
        else:
            draw = torch.Generator().manual_seed(layer)
            blocks = torch.randint(256, (4, 192, 4, 16), generator=draw).to(torch.uint8)
            scales = torch.randint(110, 130, (4, 192, 4), generator=draw).to(torch.uint8)
            made |= {f"{stem}.experts.down_proj_blocks": blocks, f"{stem}.experts.down_proj_scales": scales}
    return made


def hashes(folder: Path) -> dict[str, str]:
    """Of all tensors of a folder, two of which have to be decoded."""
    with open_checkpoint(folder) as checkpoint:
        assert sum(info.storage is not None for info in checkpoint.tensors.values()) == 2
        return {name: hashlib.sha256(stored(checkpoint, name)).hexdigest() for name in checkpoint.tensors}


def test_quantised_models_are_streamed(tmp_path: Path) -> None:
    with FakeHub() as hub:
        for repo, how in CONFIGS.items():
            hub.add(repo, save(tmp_path / repo, tensors(repo), config={"quantization_config": how}, shards=2))
        with Client(hub, tmp_path / "home") as client:
            found = {repo: client.read(repo, "stream") for repo in CONFIGS}

    for repo in CONFIGS:
        assert found[repo]["hashes"] == hashes(tmp_path / repo)
        assert found[repo]["requests"] < 20
