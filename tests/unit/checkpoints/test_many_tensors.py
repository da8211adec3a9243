"""Checkpoints of very many tensors: true headers over holes in the file, so that nothing but names is large."""

from pathlib import Path

import pytest
from files import layout, raw

import deltarank


def experts(path: Path, *, layers: int, experts: int) -> Path:
    """One file with a gate, an up and a down matrix for each expert."""
    shapes = {
        f"model.layers.{layer}.mlp.experts.{expert}.{module}.weight": ("BF16", shape)
        for layer in range(layers)
        for expert in range(experts)
        for module, shape in (("gate_proj", (768, 2048)), ("up_proj", (768, 2048)), ("down_proj", (2048, 768)))
    }
    header, size = layout(shapes)
    start = raw(header)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
    return path


@pytest.mark.slow
def test_fifty_thousand_tensors_are_planned_from_headers(tmp_path: Path) -> None:
    """How long that takes is stated by the benchmark of that name."""
    pair = [experts(tmp_path / f"{side}.safetensors", layers=66, experts=256) for side in ("base", "finetune")]
    plan = deltarank.plan(*pair)

    assert len(plan.steps) == 66 * 256 * 3 > 50_000
    assert plan.read_bytes == 2 * 2 * 768 * 2048 * len(plan.steps)
