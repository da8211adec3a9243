"""The tensors of one file of any format."""

from __future__ import annotations

from collections.abc import Iterable

from deltarank.checkpoints.formats.gguf import GGUF_SUFFIX, gguf_tensors
from deltarank.checkpoints.formats.safetensors_header import TensorInfo, parse_header, read_header
from deltarank.checkpoints.formats.torch_pickle import PICKLE_SUFFIXES, read_pickled
from deltarank.checkpoints.source import Source


def read_tensors(source: Source, file: str) -> tuple[bytes, Iterable[TensorInfo]]:
    """The tensors that a file's header describes, after bytes that change when the header does.

    Raises:
        CheckpointError, HeaderError: it cannot be read, or is invalid.
    """
    if file.lower().endswith(PICKLE_SUFFIXES):
        tensors = read_pickled(source, file)
        return repr(sorted(tensors.items())).encode("utf-8", "surrogatepass"), tensors.values()
    if file.endswith(GGUF_SUFFIX):
        return gguf_tensors(source, file)
    header = read_header(source, file)
    return header, parse_header(header, file=file, size=source.files[file]).values()
