"""Untrusted headers, indexes and configurations."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.torch import save

import deltarank
from deltarank.checkpoints import Checkpoint, open_checkpoint
from fuzz.hostile import JSON, SCALARS, WORDS, as_json, cases, spoilt, survives, torn
from unit.checkpoints.files import BITS

SHAPES = {
    "model.embed_tokens.weight": (12, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.experts.gate_up_proj": (2, 16, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.1.self_attn.q_proj.weight": (8, 8),
}
TENSORS = {name: torch.full(shape, 0.5, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
MOVED = {name: tensor + 0.25 for name, tensor in TENSORS.items()}
WHOLE = save(TENSORS, {"format": "pt"})
LENGTH = int.from_bytes(WHOLE[:8], "little")
HEADER: dict[str, Any] = json.loads(WHOLE[8 : 8 + LENGTH])
DATA = WHOLE[8 + LENGTH :]
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
    "text_config": {"tie_word_embeddings": False, "model_type": "gpt2"},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["a"]},
}
INDEX = {
    "metadata": {"total_size": 100},
    "weight_map": {name: f"part-{i % 2}.safetensors" for i, name in enumerate(SHAPES)},
}


def opened(path: Path) -> Checkpoint | None:
    """The checkpoint, closed; its names and places stay."""

    def action() -> Checkpoint:
        with open_checkpoint(path) as checkpoint:
            return checkpoint

    return survives(action)


def check_header(content: bytes, path: Path) -> None:
    """What is believed, the format's own library believes, and every tensor lies inside the file, alone."""
    path.write_bytes(content)
    if (checkpoint := opened(path)) is None:
        return
    places = sorted((info.start, info.start + info.nbytes) for info in checkpoint.tensors.values())
    assert all(before[1] <= after[0] for before, after in pairwise(places))
    assert all(start >= 8 and end <= len(content) for start, end in places)
    if {info.dtype for info in checkpoint.tensors.values()} <= BITS.keys():  # another type is let through, unread
        known = {name: tuple(about["shape"]) for name, about in deserialize(content)}
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == known


@given(header=spoilt(HEADER))
@cases(250)
def test_an_edited_header(header: Any, tmp_path: Path) -> None:
    text = as_json(header)
    check_header(len(text).to_bytes(8, "little") + text + DATA, tmp_path / "x.safetensors")


@given(content=torn(WHOLE, head=8 + LENGTH))
@cases(250)
def test_a_file_with_edited_bytes(content: bytes, tmp_path: Path) -> None:
    check_header(content, tmp_path / "x.safetensors")


@given(
    entries=st.lists(
        st.tuples(
            WORDS,
            st.sampled_from(["F32", "BF16", "F4", "F8_E8M0", "I64", "Q9"]),
            st.lists(st.integers(0, 4) | st.sampled_from([2**31, 2**62]), max_size=3),
            st.integers(0, 64),
        ),
        max_size=5,
    ),
    beyond=st.integers(-8, 8),
)
@cases(150)
def test_a_header_of_adjacent_tensors(entries: list[Any], beyond: int, tmp_path: Path) -> None:
    """Tensors one behind the other, of sizes that fit their shapes or do not."""
    header, place = {}, 0
    for name, dtype, shape, size in entries:
        fits = math.prod(shape) * {"F32": 4, "BF16": 2, "I64": 8}.get(dtype, 1)
        size = fits if fits < 100 else size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = as_json(header)
    check_header(len(text).to_bytes(8, "little") + text + bytes(max(place + beyond, 0)), tmp_path / "x.safetensors")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two shards, and beside it a file that no index may reach."""
    home = tmp_path_factory.mktemp("sharded")
    folder = home / "model"
    (folder / "below").mkdir(parents=True)
    for i in range(2):
        part = {name: TENSORS[name] for name, file in INDEX["weight_map"].items() if file == f"part-{i}.safetensors"}  # type: ignore[attr-defined]
        (folder / f"part-{i}.safetensors").write_bytes(save(part))
    (folder / "below" / "x.safetensors").write_bytes(WHOLE)
    (home / "secret.safetensors").write_bytes(WHOLE)
    return folder


FILES = st.sampled_from(
    [
        *("part-0.safetensors", "part-1.safetensors", "below/x.safetensors", "../secret.safetensors", "..", "", "/"),
        *("below/../x.safetensors", "below/../../secret.safetensors", "./part-0.safetensors", "//secret.safetensors"),
        *("below", "model.safetensors.index.json", "PART-0.safetensors", "~/x.safetensors", "a" * 300),
        *("%2e%2e/secret.safetensors", "..\\secret.safetensors", "/proc/self/environ.safetensors"),
    ]
)


def check_index(text: bytes, folder: Path) -> None:
    """Whatever it says, only files below its folder are read."""
    (folder / "model.safetensors.index.json").write_bytes(text)
    if (checkpoint := opened(folder)) is None:
        return
    for file in checkpoint.reference.files:
        assert (folder / file).resolve().is_relative_to(folder.resolve())
    assert {info.file for info in checkpoint.tensors.values()} <= set(checkpoint.reference.files)


@given(weight_map=st.dictionaries(WORDS | st.sampled_from(sorted(SHAPES)), FILES | SCALARS, max_size=5))
@cases(200)
def test_an_index_that_names_any_file(weight_map: Any, sharded: Path) -> None:
    check_index(as_json({"metadata": {}, "weight_map": weight_map}), sharded)


@given(text=spoilt(INDEX).map(as_json) | torn(as_json(INDEX)))
@cases(150)
def test_an_edited_index(text: bytes, sharded: Path) -> None:
    check_index(text, sharded)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("pair")
    for side, tensors in (("base", TENSORS), ("finetune", MOVED)):
        (home / side).mkdir()
        (home / side / "model.safetensors").write_bytes(save(tensors))
    return home / "base", home / "finetune"


@given(texts=st.tuples(*[spoilt(CONFIG).map(as_json) | torn(as_json(CONFIG)) | JSON.map(as_json)] * 2))
@cases(150)
def test_any_configuration(texts: tuple[bytes, bytes], pair: tuple[Path, Path]) -> None:
    """It adds words and hints; the matrices that are measured are the same, unless it calls them quantised."""
    for folder, text in zip(pair, texts, strict=True):
        (folder / "config.json").write_bytes(text)
    plan = survives(lambda: deltarank.plan(*pair, ranks=[2]))

    if plan is not None:
        assert len(plan.steps) == 4
        assert all(note.isprintable() for note in plan.notes)
        survives(lambda: (plan.lines(), json.dumps(plan.to_plain())))
