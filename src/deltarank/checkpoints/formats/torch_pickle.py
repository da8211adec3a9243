"""A `.bin` of torch: a zip archive of raw numbers and a pickle that says what they are. Nothing in it is executed.

torch reads the pickle with `weights_only=True`, which knows tensors and plain containers and refuses all else, and
makes tensors without numbers that know where in the file theirs lie. From there on it is a file that is read by
position, like safetensors: no memory map, and no part of it is read twice.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.formats.safetensors_header import MAX_HEADER, MAX_SIDES, TensorInfo
from deltarank.checkpoints.formats.storage import Storage
from deltarank.checkpoints.source import Source
from deltarank.errors import CheckpointError, HeaderError

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_ZIP = b"PK\x03\x04"
_MOST_RECORDS = 1_000_000

_WORDS = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip
_WRAPPED = ("state_dict", "model_state_dict", "model", "module")
"""Under which key training loops keep the weights beside what else they save."""


class SourceFile(io.RawIOBase):
    """A file of a source, for libraries that want to read and seek."""

    def __init__(self, source: Source, file: str) -> None:
        self._source = source
        self._file = file
        self._size = source.files[file]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = max(min(len(view), self._size - self._at), 0)
        if length:
            self._source.read_into(self._file, self._at, view[:length])
        self._at += length
        return length


def read_pickled(source: Source, file: str) -> dict[str, TensorInfo]:
    """The tensors of a `.bin`, by name; none of their numbers.

    Raises:
        CheckpointError: (slug "pickled-weights") it holds more than tensors, or is of torch before 1.6.
        HeaderError: it is cut short, or its claims do not fit its size.
    """
    _check_archive(source, file)
    size = source.files[file]
    found = dict(_described(_weights(_loaded(source, file)), file))
    for info in found.values():
        if info.start + info.nbytes > size:
            _refuse(file, f"{shown(info.name)} ends at byte {info.start + info.nbytes:,}, and the file at {size:,}")
    return found


def _check_archive(source: Source, file: str) -> None:
    """A zip archive of stored records, with a pickle of bearable size."""
    start = bytearray(min(len(_ZIP), source.files[file]))
    source.read_into(file, 0, memoryview(start))
    if start != _ZIP:
        _refuse_program(file, "is no archive of torch: a bare pickle, or one of torch before 1.6")
    try:
        with zipfile.ZipFile(SourceFile(source, file)) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        _refuse(file, "its list of contents is missing: it was cut short")
    if len(records) > _MOST_RECORDS or any(record.compress_type != zipfile.ZIP_STORED for record in records):
        _refuse(file, "its records are not stored as torch stores them")
    if sum(record.file_size for record in records if record.filename.endswith(".pkl")) > MAX_HEADER:
        _refuse(file, f"its pickle has more than {MAX_HEADER:,} bytes")


def _loaded(source: Source, file: str) -> object:
    """What torch makes of the pickle: tensors that know their places, and hold nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            return torch.load(io.BufferedReader(SourceFile(source, file)), weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        _refuse_program(file, "holds more than tensors")
    # Torch's reader of foreign bytes promises no kind of error.
    except Exception as error:
        _refuse(file, f"torch cannot read it ({type(error).__name__})")


def _weights(loaded: object) -> Mapping[object, object]:
    """The mapping that holds tensors: the whole, or the part that training loops call so."""
    if isinstance(loaded, Mapping):
        if any(isinstance(value, Tensor) for value in loaded.values()):
            return loaded
        for key in _WRAPPED:
            inner = loaded.get(key)
            if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
                return inner
    return {}


def _described(weights: Mapping[object, object], file: str) -> Iterator[tuple[str, TensorInfo]]:
    for name, tensor in weights.items():
        if isinstance(name, str) and isinstance(tensor, Tensor) and tensor.ndim <= MAX_SIDES:
            yield name, _info(name, tensor, file)


def _info(name: str, tensor: Tensor, file: str) -> TensorInfo:
    word = _WORDS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    shape = tuple(int(side) for side in tensor.shape)
    size = math.prod(shape) * tensor.dtype.itemsize
    if tensor.layout != torch.strided:
        return TensorInfo(name, shape, "sparse", file, 0, 0)
    storage = tensor.untyped_storage()
    place = getattr(storage, "_checkpoint_offset", None)
    start = int(tensor.storage_offset()) * tensor.dtype.itemsize
    if not isinstance(place, int):
        obstacle = "and this version of torch does not tell where its numbers lie: a newer one does"
        return TensorInfo(name, shape, f"{word} (of no place)", file, 0, 0, Storage(word, obstacle=obstacle))
    if start + size > storage.nbytes() or not tensor.is_contiguous():
        obstacle = "its rows do not lie one behind the other in the file"
        return TensorInfo(name, shape, f"{word} (strided)", file, 0, 0, Storage(word, obstacle=obstacle))
    return TensorInfo(name, shape, word, file, place + start, size)


def _refuse_program(file: str, what: str) -> NoReturn:
    raise CheckpointError(
        f"{shown(file, most=300)} {what}. Opening it can run a program hidden in it, so it was not opened.",
        cure="Convert it to safetensors on a machine that trusts it: load it with transformers and call "
        "`save_pretrained(folder)`; or give a revision that has safetensors.",
        slug="pickled-weights",
    ) from None


def _refuse(file: str, what: str) -> NoReturn:
    raise HeaderError(
        f"{shown(file)} cannot be trusted: {what}.",
        cure="Download or copy the file again, and compare its size and checksum with those that its publisher states.",
        slug="bad-header",
    ) from None
