"""`.bin` of torch: the numbers that torch.load gives, by position, and nothing in it is executed."""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from files import Program, llama, numbers, pairing, read, save
from torch import Tensor

import deltarank
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import CheckpointError, DeltarankError, HeaderError
from refusals import refused


def save_pickled(folder: Path, tensors: Mapping[str, Tensor], *, shards: int = 1) -> Path:
    """As transformers wrote them before safetensors: one file, or shards and an index."""
    folder.mkdir(parents=True)
    if shards == 1:
        torch.save(dict(tensors), folder / "pytorch_model.bin")
        return folder
    owners = {n: f"pytorch_model-{i % shards + 1:05d}-of-{shards:05d}.bin" for i, n in enumerate(tensors)}
    for shard in set(owners.values()):
        torch.save({n: tensors[n] for n in tensors if owners[n] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": owners}))
    return folder


def refusal(path: Path) -> DeltarankError:
    with pytest.raises(DeltarankError) as caught:
        open_checkpoint(path)
    return caught.value


@pytest.mark.parametrize("shards", [1, 3])
def test_numbers_are_those_of_torch(tmp_path: Path, shards: int) -> None:
    folder = save_pickled(tmp_path / "bin", llama(), shards=shards)
    with open_checkpoint(folder) as base, open_checkpoint(save(tmp_path / "safe", llama(seed=9))) as finetune:
        plan = pair_checkpoints(base, finetune)
        assert len(plan.pairs) == 6
        for pair in (*plan.pairs, *plan.summed):
            ours, theirs = read(pair)
            assert torch.equal(ours, llama()[pair.name].reshape(ours.shape))
            assert torch.equal(theirs, llama(seed=9)[pair.name].reshape(ours.shape))


def test_results_are_those_of_safetensors(tmp_path: Path) -> None:
    pickled = save_pickled(tmp_path / "bin", llama(), shards=2)
    plain = save(tmp_path / "safe", llama())
    finetune = save(tmp_path / "finetune", llama(seed=9))

    one, other = (deltarank.compare(base, finetune) for base in (pickled, plain))

    assert [m.losses for m in one.matrices] == [m.losses for m in other.matrices]
    assert [m.singular_values for m in one.matrices] == [m.singular_values for m in other.matrices]


def test_views_ties_and_types(tmp_path: Path) -> None:
    """A view begins inside of its storage; tied tensors share one."""
    whole = numbers(10, 6)
    tensors = {"a.weight": whole[3:7], "b.weight": whole, "tied.weight": whole, "n": torch.arange(5)}
    tensors |= {f"{t}.weight": numbers(4, 4, dtype=t) for t in (torch.float16, torch.float32, torch.float64)}
    base = save_pickled(tmp_path / "a", tensors)
    finetune = save(tmp_path / "b", {name: tensor.clone() for name, tensor in tensors.items()})
    with open_checkpoint(base) as before, open_checkpoint(finetune) as after:
        pairs = pair_checkpoints(before, after).pairs
        assert len(pairs) == 6
        for pair in pairs:
            assert torch.equal(read(pair)[0], tensors[pair.name])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_transposed_matrix_is_read_as_it_is(tmp_path: Path, legacy: bool) -> None:
    """As converters from TensorFlow save it."""
    tensors = {"a.weight": numbers(40, 60).T, "b.weight": numbers(40, 60, dtype=torch.bfloat16).T}
    (tmp_path / "a").mkdir()
    torch.save(tensors, tmp_path / "a" / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    plan = pairing(tmp_path / "a", save(tmp_path / "b", {name: numbers(60, 40, seed=1) for name in tensors}))

    assert [pair.name for pair in plan.pairs] == list(tensors)
    with open_checkpoint(tmp_path / "a") as base, open_checkpoint(tmp_path / "b") as finetune:
        for pair in pair_checkpoints(base, finetune).pairs:
            assert torch.equal(read(pair)[0].double(), tensors[pair.name].double())


def test_a_strided_tensor_is_skipped_with_a_reason(tmp_path: Path) -> None:
    base = save_pickled(tmp_path / "a", {"a.weight": numbers(4, 6)[:, ::2], "b.weight": numbers(4, 4)})
    plan = pairing(base, save(tmp_path / "b", {"a.weight": numbers(4, 3), "b.weight": numbers(4, 4, seed=1)}))

    assert [pair.name for pair in plan.pairs] == ["b.weight"]
    assert "not contiguous" in plan.skipped[0].reason


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_in_a_training_loops_state_are_found(tmp_path: Path, key: str) -> None:
    torch.save({key: dict(llama()), "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "last.ckpt")

    with open_checkpoint(tmp_path / "last.ckpt") as checkpoint:
        assert checkpoint.tensors.keys() == llama().keys()


def averaged() -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in llama().items()}


@pytest.mark.parametrize(
    ("read", "other"),
    [("model", "ema"), ("state_dict", "state_dict_ema"), ("module", "ema_state_dict"), ("model", "best_model")],
)
def test_a_second_set_of_weights_in_a_pickle_is_noted(tmp_path: Path, read: str, other: str) -> None:
    """In either order, and with the prefix of a wrapper on one side."""
    first, second = {read: dict(llama())}, {other: {f"module.{name}": tensor for name, tensor in averaged().items()}}
    for saved in (first | second, second | first):
        torch.save({"epoch": 3, **saved, "optimizer": {"state": {0: {"exp_avg": numbers(4, 4)}}}}, tmp_path / "a.pt")
        with open_checkpoint(tmp_path / "a.pt") as checkpoint:
            note = f"of `a.pt`, `{read}` is read; `{other}`, a further set of weights of this model, is not"
            assert checkpoint.notes == (note,)
            assert checkpoint.tensors.keys() == llama().keys()


def test_weights_at_the_top_beside_averaged_ones(tmp_path: Path) -> None:
    torch.save({**llama(), "ema": averaged()}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert checkpoint.tensors.keys() == llama().keys()
        assert "what is at its top is read; `ema`" in checkpoint.notes[0]


def test_only_averaged_weights_are_read_with_a_note(tmp_path: Path) -> None:
    torch.save({"ema_state_dict": averaged(), "step": torch.tensor(4)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert checkpoint.tensors.keys() == llama().keys()
        assert checkpoint.notes == ("of `a.pt`, `ema_state_dict` is read",)


@pytest.mark.parametrize("keys", [("model", "state_dict"), ("actor", "critic")])
def test_several_sets_of_weights_are_refused_where_no_key_says_which_is_meant(
    tmp_path: Path, keys: tuple[str, str]
) -> None:
    torch.save({keys[0]: dict(llama()), keys[1]: averaged()}, tmp_path / "a.pt")
    with refused("several-checkpoints") as caught:
        open_checkpoint(tmp_path / "a.pt")
    assert all(key in str(caught.value) for key in keys)


def test_one_set_of_weights_under_two_keys_or_beside_other_state_has_no_note(tmp_path: Path) -> None:
    """torch stores shared tensors once. A step that is a tensor is no weight."""
    weights = llama()
    saved = {"step": torch.tensor(4), "model": dict(weights), "state_dict": dict(weights)}
    torch.save({**saved, "optimizer": {"state": {"a": {"exp_avg": numbers(4, 4)}}}}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert checkpoint.tensors.keys() == weights.keys()
        assert checkpoint.notes == ()


def test_safetensors_take_precedence(tmp_path: Path) -> None:
    save_pickled(tmp_path / "a", llama())
    save(tmp_path / "a", llama())
    with open_checkpoint(tmp_path / "a") as checkpoint:
        assert list(checkpoint.reference.files) == ["model.safetensors"]


def test_a_program_in_an_archive_of_torch_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    torch.save({"a": numbers(2, 2), "b": Program(proof)}, tmp_path / "pytorch_model.bin")

    error = refusal(tmp_path)

    assert isinstance(error, CheckpointError)
    assert error.slug == "pickled-weights"
    assert not proof.exists()


def save_legacy(path: Path, value: object) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def test_files_of_torch_before_1_6_are_read(tmp_path: Path) -> None:
    """With views into one storage, several types and a wrapper."""
    whole = numbers(10, 6)
    tensors = dict(llama()) | {"view.weight": whole[3:7], "whole.weight": whole, "n": torch.arange(5)}
    tensors |= {f"{t}.weight": numbers(4, 4, dtype=t) for t in (torch.float16, torch.bfloat16, torch.float64)}
    path = save_legacy(tmp_path / "pytorch_model.bin", {"model": tensors, "epoch": 3})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()
        for name, info in checkpoint.tensors.items():
            found = bytearray(info.nbytes)
            checkpoint.source.read_into(info.file, info.start, memoryview(found))
            assert bytes(found) == tensors[name].contiguous().view(torch.uint8).numpy().tobytes(), name


def test_a_program_in_a_file_of_torch_before_1_6_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "it ran"
    error = refusal(save_legacy(tmp_path / "pytorch_model.bin", {"a": numbers(2, 2), "b": Program(proof)}))

    assert error.slug == "pickled-weights"
    assert not proof.exists()


def test_a_damaged_file_of_torch_before_1_6_is_refused(tmp_path: Path) -> None:
    """Whatever byte is wrong, and wherever it ends."""
    whole = save_legacy(tmp_path / "whole.bin", {"a.weight": numbers(2, 3), "b.weight": numbers(3, 2)}).read_bytes()
    path = tmp_path / "damaged.bin"
    for end in range(20, len(whole), 7):
        path.write_bytes(whole[:end])
        assert refusal(path).slug in ("bad-header", "pickled-weights", "damaged"), end
    for at in range(15, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with suppress(DeltarankError), open_checkpoint(path) as checkpoint:
            assert all(info.start + info.nbytes <= len(whole) for info in checkpoint.tensors.values())


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = save_pickled(tmp_path / "a", llama()) / "pytorch_model.bin"
    os.truncate(path, int(keep * path.stat().st_size))

    assert isinstance(refusal(path), HeaderError)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    """Their places in the file are no places of numbers."""
    torch.save(dict(llama()), buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))

    assert refusal(tmp_path / "x.bin").slug == "bad-header"


def test_a_tensor_larger_than_its_file_is_refused_or_skipped(tmp_path: Path) -> None:
    """The pickle claims 4,000 times as many numbers as there are: nothing is allocated on its word."""
    torch.save({"a": numbers(16, 16)}, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"K\x10K\x10", b"M\xff\xffK\x10").replace(
                    b"M\x00\x01t", b"J\xf0\xff\x0f\x00t"
                )
            new.writestr(name, content)

    error = refusal(tmp_path / "x.bin")

    assert error.slug == "bad-header"


@pytest.mark.parametrize("shard", ["../x.bin", "/etc/passwd", "x.safetensors", "a/../../x.bin", "x.pkl"])
def test_an_index_reaches_no_file_outside_and_of_no_other_kind(tmp_path: Path, shard: str) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))

    assert isinstance(refusal(tmp_path), HeaderError)
