"""A GGUF file can be compared, but not run."""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

import deltarank
from deltarank.errors import CheckpointError
from refusals import refused


def test_outputs_of_a_gguf_file_are_refused_by_name(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("base.gguf", "finetune.gguf")]
    for number, file in enumerate(files):
        writer = GGUFWriter(file, "llama")
        writer.add_tensor("blk.0.ffn_up.weight", np.full((8, 4), number, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    with refused("not-a-language-model", CheckpointError) as caught:
        deltarank.plan_outputs(*files)

    assert "GGUF" in caught.value.message
    assert "made from" in caught.value.cure
