"""Files and folders that are something else than whole weights are named, each with its own cure."""

import json
from pathlib import Path

import pytest
import torch
from files import Tensors, llama, numbers, save, write_index
from safetensors.torch import save_file

import deltarank
from deltarank.checkpoints import open_checkpoint
from deltarank.models import ModelFolder, load_tokenizer
from refusals import refused

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1234567890\n"


def halves(tensors: Tensors) -> tuple[Tensors, Tensors]:
    names = sorted(tensors)
    return {n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}


def names_read(path: Path) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return sorted(checkpoint.tensors)


def notes_of(path: Path) -> str:
    with open_checkpoint(path) as checkpoint:
        return " / ".join(checkpoint.notes)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors", "model-00001-of-00001.safetensors", "pytorch_model.bin", "model.gguf", "last.ckpt",
        "model.safetensors.index.json",
    ],
)  # fmt: skip
def test_a_git_lfs_pointer_is_named_with_the_size_of_its_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTER)
    for path in (tmp_path, tmp_path / name):
        with refused("lfs-pointer", match=r"Git LFS pointer.*1\.23 GB") as caught:
            open_checkpoint(path)
        assert "git lfs pull" in caught.value.cure


def test_a_pointer_in_place_of_the_config_is_named(tmp_path: Path) -> None:
    """Without it, a quantised checkpoint could be misread."""
    (save(tmp_path, llama()) / "config.json").write_bytes(POINTER)
    with refused("lfs-pointer", match=r"config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"), (b" \n", "is empty"), (b"{}", "has no fields"), (b'{"model_type": ', "is not valid JSON"),
        (b'["llama"]', "is not a JSON object"), (b" " * 4_000_001, "is larger than 4,000,000 bytes"),
    ],
)  # fmt: skip
def test_a_config_that_says_nothing_is_noted_with_what_is_unknown(content: bytes, said: str, tmp_path: Path) -> None:
    """The pair is measured all the same, from the names and shapes in the files."""
    base = save(tmp_path / "base", llama(), config={"model_type": "llama"})
    (save(tmp_path / "tuned", llama(seed=1)) / "config.json").write_bytes(content)

    notes = deltarank.compare(base, tmp_path / "tuned").notes
    (note,) = [note for note in notes if "config.json" in note]
    assert note.startswith(f"`config.json` in `{tmp_path / 'tuned'}` {said}: the model type")
    assert notes_of(base) == ""


def test_a_pointer_of_xet_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("# xet version 0\nfilesize = 1\nhash = 'a'\n")
    with refused("lfs-pointer", match="Xet"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
        (b"\n  <html class=''>", "web page"),
        (b'{"error": "Repository not found"}', "text, not weights"),
        (b"Access to this model is restricted.", "Access to this model"),
        (b"\x1f\x8b\x08" + b"\x11" * 40, "gzip"),
        (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "macOS"),
        (b"\x89HDF\r\n\x1a\n" + b"\x01" * 40, "HDF5"),
        (b"\0" * 5000, "zeros"),
    ],
)
def test_other_contents_are_named(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with refused("not-weights", match=what):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf"])
def test_an_empty_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with refused("empty-file", match="0 bytes"):
        open_checkpoint(tmp_path)


def test_a_supported_format_under_the_name_of_another_is_named(tmp_path: Path) -> None:
    torch.save(dict(llama()), tmp_path / "model.safetensors")
    with refused("not-weights", match="zip archive") as caught:
        open_checkpoint(tmp_path)
    assert ".bin" in caught.value.cure


def test_leftovers_of_macos_are_not_weights(tmp_path: Path) -> None:
    save(tmp_path, llama(), shards=2)
    for path in list(tmp_path.iterdir()):
        (tmp_path / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    assert names_read(tmp_path) == sorted(llama())


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00002.safetensors", "pytorch_model-00002-of-00002.bin", "model-00001-of-00002.gguf",
        "ft-model-00001-of-00002.safetensors", "model_00001-of-00002.pt", "model-00001-of-00002.fp16.safetensors",
        "model.safetensors-00002-of-00002.safetensors", "hf_model_0002_0.pt", "model-1-of-2.safetensors",
    ],
)  # fmt: skip
def test_a_part_alone_is_refused_by_name_in_a_folder_and_by_its_path(name: str, tmp_path: Path) -> None:
    if name.endswith(".safetensors"):
        save_file(dict(llama()), tmp_path / name)
    else:
        torch.save(dict(llama()), tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with refused("missing-shard", match="missing") as caught:
            open_checkpoint(path)
        missing = name.replace("0001", "x").replace("0002", "0001").replace("x", "0002").replace("of-00001", "of-00002")
        assert (missing if "-1-" not in name else "model-2-of-2.safetensors") in caught.value.message


@pytest.mark.parametrize("names", [(1, 2), (0, 1)])
def test_the_path_of_one_part_stands_for_all(names: tuple[int, int], tmp_path: Path) -> None:
    for number, half in zip(names, halves(llama()), strict=True):
        save_file(dict(half), tmp_path / f"x-{number:05d}-of-00002.safetensors")
    part = tmp_path / f"x-{names[1]:05d}-of-00002.safetensors"
    assert names_read(part) == names_read(tmp_path) == sorted(llama())
    assert "part 2 of 2" in notes_of(part)


def test_a_part_of_a_set_beside_other_files_is_not_chosen(tmp_path: Path) -> None:
    save_file(dict(llama()), tmp_path / "model-00001-of-00002.safetensors")
    save_file(dict(llama()), tmp_path / "other.safetensors")
    with refused("several-checkpoints"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("keep_norms", [False, True])
def test_empty_tensors_of_zero_3_are_named(keep_norms: bool, tmp_path: Path) -> None:
    empty = {n: w if keep_norms and w.ndim == 1 else torch.empty(0) for n, w in llama().items()}
    with refused("empty-tensors", match="ZeRO-3") as caught:
        open_checkpoint(save(tmp_path, empty))
    assert "zero_to_fp32.py" in caught.value.cure


def test_flat_tensors_of_fsdp_are_named(tmp_path: Path) -> None:
    flat = {"_fsdp_wrapped_module._flat_param": numbers(100), "model.norm.weight": numbers(16)}
    with refused("empty-tensors", match="FSDP"):
        open_checkpoint(save(tmp_path, flat))


def test_an_empty_extra_state_is_no_fault(tmp_path: Path) -> None:
    save(tmp_path, {**llama(), "model.layers.0._extra_state": torch.empty(0)})
    assert len(names_read(tmp_path)) == len(llama()) + 1


@pytest.mark.parametrize("stale", [True, False])
def test_one_file_beside_shards_is_read_only_if_they_agree(stale: bool, tmp_path: Path) -> None:
    save(tmp_path, llama(seed=3 if stale else 0), shards=2)
    save(tmp_path, llama())
    if not stale:
        assert "not the 2 shards" in notes_of(tmp_path)
        return
    with refused("several-checkpoints", match="does not agree"):
        open_checkpoint(tmp_path)
    for path in (tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json"):
        assert names_read(path) == sorted(llama())


def test_a_stub_beside_shards_is_refused(tmp_path: Path) -> None:
    """What ZeRO-3 leaves: the head alone in model.safetensors, and the weights in shards."""
    save(tmp_path, llama(), shards=2)
    save(tmp_path, {"lm_head.weight": llama()["lm_head.weight"]})
    with refused("several-checkpoints", match="only one of them"):
        open_checkpoint(tmp_path)


def test_a_stub_of_torch_beside_shards_is_refused(tmp_path: Path) -> None:
    torch.save({"lm_head.weight": llama()["lm_head.weight"]}, tmp_path / "pytorch_model.bin")
    for number, half in enumerate(halves(llama()), start=1):
        torch.save(dict(half), tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    owners = {n: f"pytorch_model-0000{i}-of-00002.bin" for i, half in enumerate(halves(llama()), start=1) for n in half}
    write_index(tmp_path, owners, name="pytorch_model.bin.index.json")
    with refused("several-checkpoints", match="only one of them"):
        open_checkpoint(tmp_path)


def test_files_beside_the_weights_that_are_not_read_are_noted(tmp_path: Path) -> None:
    save(tmp_path, llama())
    save_file(dict(llama(seed=1)), tmp_path / "model.fp16.safetensors")
    assert "`model.fp16.safetensors` beside it is not" in notes_of(tmp_path)


def test_the_state_of_a_training_run_is_not_taken_for_weights(tmp_path: Path) -> None:
    """A checkpoint folder of a trainer, whose weights are in one pickled file of any name."""
    torch.save(dict(llama()), tmp_path / "weights.pt")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "scaler.pt"):
        torch.save({"state": {0: {"exp_avg": numbers(4, 4)}}}, tmp_path / name)
    assert names_read(tmp_path) == sorted(llama())
    (tmp_path / "weights.pt").unlink()
    for path in (tmp_path, tmp_path / "optimizer.pt"):
        with refused("training-checkpoint", match="state of a training run"):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("names", "slug", "what"),
    [
        (["global_step10/mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py"], "training-checkpoint", "DeepSpeed"),
        (["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "training-checkpoint", "DeepSpeed"),
        (["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"], "training-checkpoint", "FSDP"),
        (["__0_0.distcp", "__1_0.distcp", ".metadata"], "training-checkpoint", "FSDP"),
        (["iter_0001000/mp_rank_00/model_optim_rng.pt"], "training-checkpoint", "Megatron"),
        (["mp_rank_00/model_optim_rng.pt"], "training-checkpoint", "Megatron"),
        (["model.nemo"], "training-checkpoint", "NeMo"),
        (["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"], "training-checkpoint", "verl"),
        (["consolidated.00.pth", "consolidated.01.pth", "params.json"], "model-parallel", "slice of every matrix"),
        (["model-rank-0-part-0.safetensors"], "model-parallel", "slice of every matrix"),
        (["flax_model.msgpack"], "bad-format", "Flax"),
        (["tf_model.h5"], "bad-format", "TensorFlow"),
        (["model.ckpt.index", "model.ckpt.data-00000-of-00001"], "bad-format", "TensorFlow"),
        (["onnx/model.onnx", "config.json"], "bad-format", "ONNX"),
        (["weights.npz"], "bad-format", "numpy"),
        (["model.Q6_K.gguf.part1of2", "model.Q6_K.gguf.part2of2"], "bad-format", "cut"),
        (["openvino_model.bin", "openvino_model.xml"], "bad-format", "runtime"),
        (["checkpoint.tar"], "bad-format", "archive"),
        (["model.safetensors.part"], "unfinished-download", "did not finish"),
        ([".cache/huggingface/download/abc.incomplete", "config.json"], "unfinished-download", "did not finish"),
        (["config.json", "tokenizer.json"], "no-weights", "config.json"),
        ([], "no-weights", "no safetensors file"),
    ],
)
def test_other_formats_are_named(names: list[str], slug: str, what: str, tmp_path: Path) -> None:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x01\x02\x03\x04" * 20)
    with refused(slug, match=what):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["x.onnx", "x.nemo", "x.npz", "consolidated.01.pth", "mp_rank_00_model_states.pt"])
def test_other_formats_are_named_by_their_path(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x01" * 100)
    with refused(
        "bad-format"
        if name in ("x.onnx", "x.npz")
        else ("training-checkpoint" if "consol" not in name else "model-parallel")
    ):
        open_checkpoint(tmp_path / name)


def test_the_first_of_several_model_parallel_parts_is_refused_and_a_single_one_is_read(tmp_path: Path) -> None:
    torch.save(dict(llama()), tmp_path / "consolidated.00.pth")
    assert names_read(tmp_path) == names_read(tmp_path / "consolidated.00.pth") == sorted(llama())
    torch.save(dict(llama()), tmp_path / "consolidated.01.pth")
    with refused("model-parallel"):
        open_checkpoint(tmp_path / "consolidated.00.pth")


def test_a_download_of_aria2_that_goes_on_is_refused(tmp_path: Path) -> None:
    """The file has its full size from the beginning, with holes."""
    (save(tmp_path, llama()) / "model.safetensors.aria2").write_bytes(b"\x01")
    with refused("unfinished-download"):
        open_checkpoint(tmp_path)


def test_torchtune_folders_are_read(tmp_path: Path) -> None:
    for number, half in enumerate(halves(llama()), start=1):
        torch.save(dict(half), tmp_path / f"hf_model_000{number}_0.pt")
    torch.save({"layers.0.attn.q_proj.lora_a.weight": numbers(4, 16)}, tmp_path / "adapter_0.pt")
    torch.save({"epochs_run": 1}, tmp_path / "recipe_state.pt")
    assert names_read(tmp_path) == sorted(llama())
    torch.save(dict(halves(llama())[0]), tmp_path / "hf_model_0001_1.pt")
    with refused("several-checkpoints"):
        open_checkpoint(tmp_path)
    assert names_read(tmp_path / "hf_model_0001_0.pt") == sorted(llama())


def test_a_folder_above_one_checkpoint_is_resolved_and_said(tmp_path: Path) -> None:
    save(tmp_path / "run" / "checkpoint-500", llama(), config={"model_type": "llama"})
    with open_checkpoint(tmp_path / "run") as checkpoint:
        assert checkpoint.config["model_type"] == "llama"
        assert checkpoint.reference.ref.endswith("checkpoint-500")
        assert "`checkpoint-500`" in checkpoint.notes[0]


def test_links_to_folders_are_followed_and_name_no_second_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").symlink_to(save(tmp_path / "real", llama()))
    (tmp_path / "run" / "loop").symlink_to(tmp_path / "run")
    assert names_read(tmp_path / "run") == sorted(llama())
    save(tmp_path / "run2" / "checkpoint-5", llama())
    (tmp_path / "run2" / "best").symlink_to(tmp_path / "run2" / "checkpoint-5")
    with open_checkpoint(tmp_path / "run2") as checkpoint:
        assert checkpoint.reference.ref.endswith("checkpoint-5")


def test_a_folder_above_several_checkpoints_lists_them(tmp_path: Path) -> None:
    for step in (500, 1000):
        save(tmp_path / f"checkpoint-{step}", llama())
    with refused("several-folders", match=r"checkpoint-1000.*checkpoint-500"):
        open_checkpoint(tmp_path)


def test_a_folder_named_like_a_file_is_read_with_the_config_beside_it(tmp_path: Path) -> None:
    """zero_to_fp32.py of DeepSpeed makes a folder `pytorch_model.bin` with shards in it."""
    inner = tmp_path / "pytorch_model.bin"
    inner.mkdir()
    owners = {}
    for number, half in enumerate(halves(llama()), start=1):
        torch.save(dict(half), inner / f"pytorch_model-0000{number}-of-00002.bin")
        owners |= dict.fromkeys(half, f"pytorch_model-0000{number}-of-00002.bin")
    write_index(inner, owners, name="pytorch_model.bin.index.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert sorted(checkpoint.tensors) == sorted(llama())
        assert checkpoint.config["model_type"] == "llama"
        assert "`pytorch_model.bin`" in checkpoint.notes[0]


def test_a_folder_above_an_adapter_names_the_adapter(tmp_path: Path) -> None:
    save_file({"a": numbers(2, 2)}, save(tmp_path / "x", llama()).parent / "x" / "adapter_model.safetensors")
    (tmp_path / "x" / "model.safetensors").unlink()
    (tmp_path / "x" / "adapter_config.json").write_text("{}")
    with refused("adapter-not-checkpoint", match="x"):
        open_checkpoint(tmp_path)


def cached(home: Path, *commits: str, main: str | None) -> Path:
    """A model's folder in the Hub's cache."""
    for commit in commits:
        save(home / "snapshots" / commit, llama())
    (home / "blobs").mkdir(parents=True, exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    if main is not None:
        (home / "refs" / "main").write_text(main)
    return home


def test_a_models_folder_in_the_hubs_cache_is_its_snapshot(tmp_path: Path) -> None:
    one, two = "1" * 40, "2" * 40
    home = cached(tmp_path / "models--org--name", one, two, main=two)
    for path in (home, home / "snapshots"):
        with open_checkpoint(path) as checkpoint:
            assert Path(checkpoint.reference.ref) == home / "snapshots" / two
            assert checkpoint.reference.short_name == "name"
            assert two in checkpoint.notes[0]
    (home / "refs" / "main").unlink()
    with refused("several-checkpoints", match=one):
        open_checkpoint(home)


def test_a_half_download_in_the_hubs_cache_is_named(tmp_path: Path) -> None:
    home = cached(tmp_path / "models--org--name", "1" * 40, main="1" * 40)
    (home / "snapshots" / ("1" * 40) / "model.safetensors").unlink()
    (home / "blobs" / "abc.incomplete").write_bytes(b"x")
    with refused("unfinished-download") as caught:
        open_checkpoint(home)
    assert "hf download org/name" in caught.value.cure


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../../blobs/abc")
    with refused("unreadable", match="link"):
        open_checkpoint(tmp_path)


def test_a_note_is_in_the_results_once(tmp_path: Path) -> None:
    save(tmp_path / "run" / "checkpoint-5", llama(seed=1))
    results = deltarank.compare(save(tmp_path / "base", llama()), tmp_path / "run", ranks=[4])
    assert sum("checkpoint-5" in note for note in results.notes) == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_an_index_that_names_only_some_parts_is_refused(is_there: bool, tmp_path: Path) -> None:
    one, two = halves(llama())
    save_file(dict(one), tmp_path / "model-00001-of-00002.safetensors")
    if is_there:
        save_file(dict(two), tmp_path / "model-00002-of-00002.safetensors")
    write_index(tmp_path, dict.fromkeys(one, "model-00001-of-00002.safetensors"))
    with refused("missing-shard", match="1 of 2 parts.*named by the shard index"):
        open_checkpoint(tmp_path)


def test_an_index_of_other_shards_names_those_that_are_there(tmp_path: Path) -> None:
    for number, half in enumerate(halves(llama()), start=1):
        save_file(dict(half), tmp_path / f"model-0000{number}-of-00002.safetensors")
    write_index(tmp_path, {n: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, n in enumerate(llama())})
    with refused("missing-shard", match="of-00003") as caught:
        open_checkpoint(tmp_path)
    assert "model-00001-of-00002.safetensors" in caught.value.cure
    assert names_read(tmp_path / "model-00001-of-00002.safetensors") == sorted(llama())


def test_weights_below_several_keys_are_found_and_their_absence_is_named(tmp_path: Path) -> None:
    torch.save({"model": {"module": dict(llama())}, "epoch": 1}, tmp_path / "a.pt")
    assert names_read(tmp_path / "a.pt") == sorted(llama())
    torch.save({"opt": {"state": {0: {"exp_avg": numbers(4)}}}, "step": 3}, tmp_path / "b.pt")
    with refused("no-weights", match="no tensors"):
        open_checkpoint(tmp_path / "b.pt")


def test_a_binary_of_another_program_is_not_called_a_pickle(tmp_path: Path) -> None:
    """CTranslate2 calls its own format model.bin."""
    (tmp_path / "model.bin").write_bytes((6).to_bytes(4, "little") + b"\x10\x00TransformerSpec\x00" + bytes(range(256)))
    with refused("bad-header", match="does not begin as a file that torch writes"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_in_place_of_the_tokenizer_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / name).write_bytes(POINTER)
    with refused("lfs-pointer", match=name):
        load_tokenizer(ModelFolder(str(tmp_path)))


def test_weights_beside_and_below_that_are_not_read_are_noted(tmp_path: Path) -> None:
    save(tmp_path / "model", llama())
    save(tmp_path / "model" / "checkpoint-500", llama())
    torch.save({"a": torch.ones(2, 2)}, tmp_path / "model" / "pytorch_model.bin")
    notes = notes_of(tmp_path / "model")

    assert "`model.safetensors` is read; `pytorch_model.bin` beside it is not" in notes
    assert "the weights in `model` itself are read; `checkpoint-500` below it is not" in notes


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "other.safetensors"]
)
def test_further_safetensors_files_are_noted(tmp_path: Path, name: str) -> None:
    """Beside one file, and beside shards: Mistral publishes both."""
    for names in (["model.safetensors"], ["model-00001-of-00001.safetensors"]):
        folder = tmp_path / str(len(names[0]))
        folder.mkdir()
        save_file(llama(), folder / names[0])
        save_file({"twin": numbers(2, 2)}, folder / name)
        if "00001" in names[0]:
            write_index(folder, dict.fromkeys(llama(), names[0]))
        read = "`model.safetensors` is read" if len(names[0]) == 17 else f"`{names[0]}` is read"
        assert f"{read}; `{name}` beside it is not" in notes_of(folder)
