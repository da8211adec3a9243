"""Models in several files, and a process that runs commands on them from a Hub on this machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from commands import LineProcess
from hub import FakeHub, client_environment

SHARED, CHANGED = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

_RUN = """
import json, sys
from deltarank.cli import main
for line in sys.stdin:
    print("\\n@" + json.dumps(main(json.loads(line))), flush=True)
"""


def weights(seed: int) -> dict[str, Tensor]:
    """2.2 MB in bfloat16: files are larger than what comes with a header, matrices than what is measured in stacks."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (300, 256), "lm_head.weight": (300, 256), "model.norm.weight": (256,)}
    for layer in range(3):
        at = f"model.layers.{layer}."
        shapes |= {at + "self_attn.q_proj.weight": (512, 320), at + "mlp.down_proj.weight": (256, 576)}
        shapes[at + "input_layernorm.weight"] = (256,)
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}


def write(folder: Path, tensors: Mapping[str, Tensor], shards: int) -> Path:
    folder.mkdir()
    owners = {n: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, n in enumerate(sorted(tensors))}
    for shard in set(owners.values()):
        save_file({name: tensors[name] for name in tensors if owners[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": owners}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    return folder


class CommandProcess(LineProcess):
    """A process with the real client, which takes one command line after another. `said` is its stderr."""

    def __init__(self, hub: FakeHub, folder: Path) -> None:
        self.home, self._log = folder / "home", folder / "stderr"
        with self._log.open("wb") as log:
            super().__init__(_RUN, client_environment(hub, self.home), stderr=log)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def weights_in_cache(self, user: str) -> list[Path]:
        return list(self.home.glob(f"hub/models--{user}--*/snapshots/*/*.safetensors"))

    def run(self, *words: object) -> None:
        """Runs a command that succeeds."""
        assert self.request([str(word) for word in words]) == 0, self.said


def numbers_in(folder: Path) -> list[dict[str, Any]]:
    """All that was measured, less the time that it took."""
    found = json.loads((folder / "results.json").read_text())
    matrices = [{key: value for key, value in matrix.items() if key != "seconds"} for matrix in found["matrices"]]
    return [*matrices, *found["skipped"], {"totals": found["totals"], "verdict": found["verdict"]["kind"]}]


def write_sharing_pair(home: Path) -> tuple[Path, Path]:
    """Two shards, of which finetuning left the first as it was."""
    base = write(home / "base", weights(0), 2)
    owners = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    tuned = {
        name: w if owners[name] == SHARED else (w + (0.02 * torch.ones_like(w))).to(w.dtype)
        for name, w in weights(0).items()
    }
    return base, write(home / "tuned", tuned, 2)
