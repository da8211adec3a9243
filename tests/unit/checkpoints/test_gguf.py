"""GGUF files, written by the gguf package as llama.cpp's converter lays them out, meet checkpoints of transformers."""

import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from files import read, stored
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from quantised import relative_error, stated_error, weights
from torch import Tensor
from transformers import AutoModelForCausalLM

import deltarank
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import CheckpointError, HeaderError
from refusals import refused
from tiny_architectures import Make, architecture

HEADS, KEYS = 4, 2
SIZES = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "pad_token_id": 0,
}
SIXTEEN = {**SIZES, "head_dim": 16}
FEW = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}

MODELS: dict[str, tuple[str, Make]] = {
    "llama": ("llama", architecture("llama", **SIZES, **UNTIED)),
    "mixtral": ("llama", architecture("mixtral", **SIXTEEN, **UNTIED, num_local_experts=3)),
    "qwen2": ("qwen2", architecture("qwen2", **SIZES, **UNTIED)),
    "qwen2moe": ("qwen2moe", architecture("qwen2_moe", **SIZES, **UNTIED, **FEW, shared_expert_intermediate_size=64)),
    "qwen3": ("qwen3", architecture("qwen3", **SIXTEEN, **UNTIED)),
    "qwen3moe": ("qwen3moe", architecture("qwen3_moe", **SIXTEEN, **UNTIED, **FEW)),
    "gemma": ("gemma", architecture("gemma", **SIXTEEN, **TIED)),
    "gemma2": ("gemma2", architecture("gemma2", **SIXTEEN, **TIED)),
    "gemma3": ("gemma3", architecture("gemma3_text", **SIXTEEN, **TIED)),
    "phi3": ("phi3", architecture("phi3", **SIZES, **UNTIED, bos_token_id=1, eos_token_id=2)),
}
"""llama.cpp's name of the architecture, and the model of transformers."""


def model(name: str, folder: Path) -> tuple[str, dict[str, Tensor]]:
    """The architecture by llama.cpp's name, and the tensors as transformers saved them."""
    torch.manual_seed(0)
    architecture, make = MODELS[name]
    made = make()
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(0, 0.1)
    made.save_pretrained(folder)
    copy = shutil.copytree(folder, folder.with_name("copy"))  # under other inodes: equal files are refused
    with open_checkpoint(folder) as one, open_checkpoint(copy) as other:
        plan = pair_checkpoints(one, other)
        found = {pair.name: read(pair)[0].view(pair.shape) for pair in (*plan.pairs, *plan.summed)}
        return architecture, {name: found[name].view(one.tensors[name].shape) for name in found}


def permuted(weight: Tensor, heads: int) -> Tensor:
    """As llama.cpp's converter turns the rows of q and k."""
    rows = weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.transpose(1, 2).reshape(weight.shape)


def laid_out(architecture: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the converter of llama.cpp writes a model: names, rows, norms, experts in one tensor."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(arch, 2)
    found: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for name, weight in tensors.items():
        if architecture == "llama" and "q_proj" in name:
            weight = permuted(weight, HEADS)
        if architecture == "llama" and "k_proj" in name:
            weight = permuted(weight, KEYS)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            weight = weight + 1
        parts = name.split(".")
        if "experts" in parts:
            at = parts.index("experts")
            experts.setdefault(".".join([*parts[: at + 1], *parts[at + 2 :]]), []).append(weight)
            continue
        name_in_file = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert name_in_file is not None, name
        found[name_in_file] = weight
    for name, several in experts.items():
        name_in_file = table.get_name(name, try_suffixes=(".weight",))
        assert name_in_file is not None, name
        found[name_in_file] = torch.stack(several)
    return found


def written(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write(path: Path, architecture: str, tensors: dict[str, Tensor], kind: str = "F32", **about: Any) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_context_length(128)
    writer.add_token_list([f"word {i}" for i in range(48)])
    writer.add_chat_template("{{ hello }}" * 9000)
    for key, value in about.items():
        writer.add_uint32(key, value)
    for name, tensor in tensors.items():
        plain = kind == "F32" or tensor.ndim == 1 or tensor.shape[-1] % 32
        numpy = tensor.float().contiguous().numpy()
        chosen = GGMLQuantizationType["F32" if plain else kind]
        writer.add_tensor(name, numpy if plain else quantize(numpy, chosen), raw_dtype=chosen)
    return written(writer, path)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "F32") for name in sorted(MODELS)), ("mixtral", "Q8_0"), ("gemma2", "Q8_0")]
)
def test_gguf_tensors_equal_the_checkpoint_they_were_made_from(tmp_path: Path, name: str, kind: str) -> None:
    architecture, tensors = model(name, tmp_path / "plain")
    path = write(tmp_path / "x.gguf", architecture, laid_out(architecture, tensors), kind)
    with open_checkpoint(path) as base, open_checkpoint(tmp_path / "plain") as finetune:
        assert base.tensors.keys() == finetune.tensors.keys()
        plan = pair_checkpoints(base, finetune)
        assert not plan.skipped
        for pair in (*plan.pairs, *plan.summed):
            ours, theirs = read(pair, entries=500)
            if kind == "F32":
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7 if architecture.startswith("gemma") else 0)
            else:
                assert relative_error(ours, theirs) < 0.008, pair.name


def test_transformers_reads_the_same_from_the_file(tmp_path: Path) -> None:
    """Its own GGUF loader, which undoes the turning of q and k by itself."""
    architecture, tensors = model("llama", tmp_path / "plain")
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "plain" / "config.json").read_bytes())
    path = write(folder / "x.gguf", architecture, laid_out(architecture, tensors), "Q4_0")
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file="x.gguf", dtype=torch.float32).state_dict()
    with open_checkpoint(path) as base, open_checkpoint(tmp_path / "plain") as finetune:
        for pair in pair_checkpoints(base, finetune).pairs:
            torch.testing.assert_close(read(pair)[0], theirs[pair.name], rtol=0, atol=0)


# Types that the package decodes and cannot make: any bytes are numbers of them, but for scales that are no numbers.
@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q4_1", "Q5_0", "MXFP4"])
def test_types_are_those_of_the_package(tmp_path: Path, kind: str) -> None:
    chosen = GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[chosen]
    raw = np.random.default_rng(0).integers(0, 60, (40, 512 // block * size), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "x.gguf", "qwen2")
    writer.add_tensor("blk.0.ffn_down.weight", raw, raw_dtype=chosen)
    with open_checkpoint(written(writer, tmp_path / "x.gguf")) as checkpoint:
        found = np.frombuffer(stored(checkpoint, "model.layers.0.mlp.down_proj.weight"), np.float32)

    assert np.array_equal(found.reshape(40, 512), dequantize(raw, chosen))


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "MXFP4"])
def test_the_stated_error_is_what_rounding_makes(tmp_path: Path, kind: str) -> None:
    true = weights(256, 1024)
    chosen = GGMLQuantizationType[kind]
    path = write(tmp_path / "x.gguf", "qwen2", {"blk.0.ffn_down.weight": true}, kind)
    found = torch.from_numpy(dequantize(quantize(true.numpy(), chosen), chosen))

    stated = stated_error(path, name="model.layers.0.mlp.down_proj.weight")
    assert relative_error(found, true) == pytest.approx(stated, rel=0.05)


def test_a_gguf_base_is_compared_and_its_rounding_noted(tmp_path: Path) -> None:
    architecture, tensors = model("llama", tmp_path / "plain")
    (tmp_path / "gguf").mkdir()
    write(tmp_path / "gguf" / "x.gguf", architecture, laid_out(architecture, tensors), "Q4_0")

    results = deltarank.compare(tmp_path / "gguf", tmp_path / "plain")

    norms = [m.relative_norm for m in results.matrices]
    assert len(norms) == 14
    assert norms == pytest.approx([0.086] * 14, rel=0.1)
    assert any("GGUF Q4_0" in note and "8.6 %" in note for note in results.notes)


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", "mamba", {"blk.0.ssm_in.weight": weights(4, 32)})

    with refused("quantised-format", CheckpointError, match="mamba") as caught:
        open_checkpoint(path)

    assert all(name in caught.value.message for name, _ in MODELS.values())


def test_gguf_parts_are_read_together(tmp_path: Path) -> None:
    architecture, tensors = model("qwen2", tmp_path / "plain")
    stored = list(laid_out(architecture, tensors).items())
    first = write(tmp_path / "x-00001-of-00002.gguf", architecture, dict(stored[:10]))
    write(tmp_path / "x-00002-of-00002.gguf", architecture, dict(stored[10:]))

    with open_checkpoint(first) as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()


def test_heads_that_do_not_divide_the_rows_leave_them_undecoded(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", "llama", {"blk.0.attn_q.weight": weights(30, 32)})

    with open_checkpoint(path) as checkpoint:
        (info,) = checkpoint.tensors.values()
        assert info.dtype == "GGUF F32"
        assert "not known" in str(info.storage)


def header(pairs: int = 0, tensors: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(40),
        header(version=1),
        header(pairs=2**60),
        header(tensors=2**60),
        header(pairs=1, rest=struct.pack("<Q", 2**62)),
        header(pairs=1, rest=text(b"\xff\xfe") + struct.pack("<II", 4, 1)),
        header(pairs=1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**62)),
        header(pairs=1, rest=text(b"a") + struct.pack("<IIQ", 9, 8, 2**62)),
        header(pairs=1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 1) * 9),
        header(pairs=1, rest=text(b"a") + struct.pack("<I", 77)),
        header(pairs=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 0)),
        header(tensors=1, rest=text(b"a") + struct.pack("<I", 9)),
        header(tensors=1, rest=text(b"a") + struct.pack("<IQQIQ", 2, 2**39, 2**39, 0, 0)),
        header(tensors=1, rest=text(b"a") + struct.pack("<IQIQ", 1, 1000, 0, 0)),
        header(tensors=1, rest=text(b"a") + struct.pack("<IQIQ", 1, 1, 0, 2**63)),
    ],
)
def test_an_inconsistent_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)

    with pytest.raises(HeaderError):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_tensor_of_an_unknown_type_is_not_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", "qwen2", {"blk.0.ffn_down.weight": weights(8, 32)}, "Q8_0")
    place = struct.pack("<IQQI", 2, 32, 8, GGMLQuantizationType.Q8_0)
    path.write_bytes(path.read_bytes().replace(place, struct.pack("<IQQI", 2, 32, 8, 999)))

    with open_checkpoint(path) as checkpoint:
        (info,) = checkpoint.tensors.values()
    assert info.dtype == "GGUF type 999"
