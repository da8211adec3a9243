"""The numbers do not depend on how a model is fetched: streamed, downloaded, local."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hub import FakeHub, client_environment

_RUN = """
import json, sys
from deltarank.cli import main
for line in sys.stdin:
    print("\\n@" + json.dumps(main(json.loads(line))), flush=True)
"""


def weights(seed: int) -> dict[str, Tensor]:
    """1.3 MB in bfloat16, so that files are larger than what comes with a header."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (300, 256), "lm_head.weight": (300, 256), "model.norm.weight": (256,)}
    for layer in range(3):
        at = f"model.layers.{layer}."
        shapes |= {at + "self_attn.q_proj.weight": (256, 256), at + "mlp.down_proj.weight": (256, 384)}
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


def run(hub: FakeHub, home: Path, *commands: list[str]) -> tuple[list[int], str]:
    """The commands one after another in one process with the real client, and what it said."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", _RUN],
        input="".join(json.dumps(command) + "\n" for command in commands),
        env=client_environment(hub, home),
        capture_output=True,
        text=True,
        timeout=240,
    )
    codes = [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("@")]
    return codes, done.stderr


def numbers_in(folder: Path) -> list[dict[str, Any]]:
    """All that was measured, less the time that it took."""
    found = json.loads((folder / "results.json").read_text())
    matrices = [{key: value for key, value in matrix.items() if key != "seconds"} for matrix in found["matrices"]]
    return [*matrices, *found["skipped"], {"totals": found["totals"], "verdict": found["verdict"]["kind"]}]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    base = weights(0)
    tuned = {
        name: w + (0.01 * change).to(w.dtype)
        for (name, w), change in zip(base.items(), weights(1).values(), strict=True)
    }
    return write(root / "base", base, 2), write(root / "tuned", tuned, 3)


def test_streamed_downloaded_and_local_runs_give_equal_numbers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ids = ["org/base", "org/tuned"]
    more = ["--ranks", "4,16", "--device", "cpu"]
    with FakeHub() as hub:
        hub.add("org/base", pair[0])
        hub.add("org/tuned", pair[1])
        codes, said = run(
            hub,
            tmp_path / "home",
            ["compare", *map(str, pair), "-o", str(tmp_path / "local"), *more],
            ["compare", *ids, "--stream", "-o", str(tmp_path / "streamed"), *more],
        )
        assert codes == [0, 0], said
        kept = list((tmp_path / "home").rglob("*.safetensors"))
        asked = sum(part.nbytes for part in hub.sent)
        codes, more_said = run(
            hub, tmp_path / "home", ["compare", *ids, "--download", "-o", str(tmp_path / "downloaded"), *more]
        )
        assert codes == [0], more_said
        assert hub.secrets == []
    assert kept == []
    needed = sum(path.stat().st_size for folder in pair for path in folder.glob("*.safetensors"))
    assert asked <= 1.4 * needed  # three matrices are read twice, to probe whether this can be the base
    assert "streamed, and nothing of it is kept" in said
    assert list((tmp_path / "home").rglob("*.safetensors"))
    local = numbers_in(tmp_path / "local")
    assert [matrix["outcome"] for matrix in local[:6]] == ["measured"] * 6
    assert numbers_in(tmp_path / "streamed") == local
    assert numbers_in(tmp_path / "downloaded") == local
    results = json.loads((tmp_path / "streamed" / "results.json").read_text())
    assert results["base"]["ref"] == "org/base"
    assert results["base"]["revision"] == hub.repos["org/base"].commit("main")
