"""Untrusted GGUF and torch files."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from deltarank.checkpoints import Checkpoint, open_checkpoint
from fuzz.hostile import cases, survives, torn

SHAPES = {"token_embd.weight": (8, 32), "blk.0.attn_q.weight": (32, 32), "output_norm.weight": (32,)}


def opened(path: Path) -> Checkpoint:
    with open_checkpoint(path) as checkpoint:
        return checkpoint


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_embedding_length(32)
    for name, shape in SHAPES.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(opened(path).tensors) == 3  # and what reads it is imported
    return path.read_bytes()


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    written = io.BytesIO()
    torch.save({name: torch.ones(shape) for name, shape in SHAPES.items()}, written)
    path = tmp_path_factory.mktemp("torch") / "pytorch_model.bin"
    path.write_bytes(written.getvalue())
    assert len(opened(path).tensors) == 3
    return written.getvalue()


def check(content: bytes, path: Path, *, plain: bool) -> None:
    """What is believed lies in the file, or, where it has to be decoded, is not much larger."""
    path.write_bytes(content)
    checkpoint = survives(lambda: opened(path))
    if checkpoint is not None:
        assert all(info.start + info.nbytes <= len(content) or not plain for info in checkpoint.tensors.values())
        assert sum(info.nbytes for info in checkpoint.tensors.values()) < 100 * (len(content) + 1)


@given(data=st.data())
@cases(120)
def test_a_gguf_file_with_edited_bytes(data: st.DataObject, gguf_file: bytes, tmp_path: Path) -> None:
    check(data.draw(torn(gguf_file, head=1500)), tmp_path / "m.gguf", plain=False)


@given(data=st.data())
@cases(80)
def test_a_torch_file_with_edited_bytes(data: st.DataObject, torch_file: bytes, tmp_path: Path) -> None:
    check(data.draw(torn(torch_file)), tmp_path / "pytorch_model.bin", plain=True)
