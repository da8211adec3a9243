"""PyTorch's `.bin`: a zip archive of raw numbers, and a pickle that describes them. Nothing in it is executed.

Files of torch before 1.6 are not archives, and are read by `legacy_pickle`.

`torch.load(weights_only=True)` refuses everything but tensors and plain containers. It makes tensors without data that
know their offsets in the file, which then is read by position, like safetensors: no memory map, and no part of it is
read twice.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.file_contents import refuse_other_content
from deltarank.checkpoints.file_errors import refuse_file, unreadable_because
from deltarank.checkpoints.formats.legacy_pickle import MAGIC, load_legacy
from deltarank.checkpoints.formats.safetensors_header import MAX_HEADER, MAX_SIDES, TensorInfo
from deltarank.checkpoints.formats.state_dicts import find_state_dict
from deltarank.checkpoints.formats.storage import StorageFormat
from deltarank.checkpoints.formats.transposed import TRANSPOSED
from deltarank.checkpoints.source import LocalSource, Source
from deltarank.errors import CheckpointError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_MAX_RECORDS = 1_000_000

_DTYPE_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


def read_pickled(source: Source, file: str) -> tuple[dict[str, TensorInfo], str | None]:
    """The tensors of a local `.bin`, by name, without their data; and a note, if it contains several sets of weights.

    Raises:
        CheckpointError: (slug "pickled-weights") it holds more than tensors, or is not a file of torch; (slug
            "several-checkpoints") it contains several sets of weights, and which is meant is not clear.
        HeaderError: it is truncated, or does not fit its size.
    """
    assert isinstance(source, LocalSource), "pickles are not streamed"
    path, size = source.path(file), source.files[file]
    is_legacy = _is_legacy(source, file)
    if not is_legacy:
        _check_archive(path, file)
    found = find_state_dict(_load(path, file, is_legacy=is_legacy), file)
    tensors = dict(_tensor_infos(found.tensors, file))
    for info in tensors.values():
        end = info.start + info.nbytes
        if end > size:
            refuse_file(file, f"{quoted(info.name)} ends at byte {end:,}, but the file at {size:,}")
    return tensors, found.note


def _is_legacy(source: Source, file: str) -> bool:
    """Whether it is of torch before 1.6; refuses what is no file of torch."""
    start = bytearray(min(len(MAGIC), source.files[file]))
    source.read_into(file, 0, memoryview(start))
    if start != MAGIC and not start.startswith(_ZIP_MAGIC):
        refuse_other_content(source, file)
        if not start.startswith(_PICKLE_MAGIC):
            refuse_file(file, "it does not begin as a file that torch writes")
        _refuse_unsafe(file, "is not a file of torch, but a bare pickle")
    return start == MAGIC


def _check_archive(path: Path, file: str) -> None:
    """A zip archive of uncompressed records, with a pickle of limited size."""
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            records = archive.infolist()
    except OSError as error:
        raise unreadable_because(path, error) from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        refuse_file(file, "its directory of records is missing: it is truncated")
    if len(records) > _MAX_RECORDS or any(record.compress_type != zipfile.ZIP_STORED for record in records):
        refuse_file(file, "its records are not stored as torch stores them")
    if sum(record.file_size for record in records if record.filename.endswith(".pkl")) > MAX_HEADER:
        refuse_file(file, f"its pickle has more than {MAX_HEADER:,} bytes")


def _load(path: Path, file: str, *, is_legacy: bool) -> object:
    """The unpickled object, with tensors that know their offsets and hold no data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        if is_legacy:
            return load_legacy(path, most=MAX_HEADER)
        with FakeTensorMode():
            return torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        _refuse_unsafe(file, "contains more than tensors")
    # torch promises no exception types for invalid files.
    except Exception as error:
        refuse_file(file, f"torch cannot read it ({type(error).__name__})")


def _tensor_infos(state_dict: Mapping[object, object], file: str) -> Iterator[tuple[str, TensorInfo]]:
    for name, tensor in state_dict.items():
        if isinstance(name, str) and isinstance(tensor, Tensor) and tensor.ndim <= MAX_SIDES:
            yield name, _tensor_info(name, tensor, file)


def _tensor_info(name: str, tensor: Tensor, file: str) -> TensorInfo:
    dtype = _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    shape = tuple(int(side) for side in tensor.shape)
    nbytes = math.prod(shape) * tensor.dtype.itemsize
    if tensor.layout != torch.strided:
        return TensorInfo(name, shape, "sparse", file, 0, 0)
    storage = tensor.untyped_storage()
    storage_start = getattr(storage, "_checkpoint_offset", None)
    offset = int(tensor.storage_offset()) * tensor.dtype.itemsize
    if not isinstance(storage_start, int):
        obstacle = "this version of torch does not report its offset in the file, but a newer one does"
        return TensorInfo(name, shape, f"{dtype} (no offset)", file, 0, 0, StorageFormat(dtype, obstacle=obstacle))
    if offset + nbytes <= storage.nbytes() and tensor.ndim == 2 and tensor.T.is_contiguous() and 1 not in shape:
        format_ = StorageFormat(dtype, obstacle="it is stored as its transpose")
        return TensorInfo(name, shape, f"{dtype}{TRANSPOSED}", file, storage_start + offset, nbytes, format_)
    if offset + nbytes > storage.nbytes() or not tensor.is_contiguous():
        obstacle = "it is not contiguous in the file"
        return TensorInfo(name, shape, f"{dtype} (strided)", file, 0, 0, StorageFormat(dtype, obstacle=obstacle))
    return TensorInfo(name, shape, dtype, file, storage_start + offset, nbytes)


def _refuse_unsafe(file: str, problem: str) -> NoReturn:
    raise CheckpointError(
        f"{quoted(file, max_length=300)} {problem}. It was not loaded, because loading it can run any program hidden "
        "in it.",
        cure="Convert it to safetensors on a machine that may run it: load it with transformers and call "
        "`save_pretrained(folder)`; or give a revision that has safetensors.",
        slug="pickled-weights",
    ) from None
