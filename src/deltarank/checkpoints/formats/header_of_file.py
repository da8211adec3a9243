"""The tensors of one file, whatever kind of file it is."""

from __future__ import annotations

from collections.abc import Iterable

from deltarank.checkpoints.formats.gguf import SUFFIX as GGUF
from deltarank.checkpoints.formats.gguf import gguf_tensors
from deltarank.checkpoints.formats.safetensors_header import TensorInfo, parse_header, read_header
from deltarank.checkpoints.formats.torch_pickle import SUFFIXES, read_pickled
from deltarank.checkpoints.source import Source


def read_tensors(source: Source, file: str) -> tuple[bytes, Iterable[TensorInfo]]:
    """What stands in a file's header: bytes that change when it does, and the tensors that it describes.

    Raises:
        CheckpointError, HeaderError: it cannot be read, or not be trusted.
    """
    if file.lower().endswith(SUFFIXES):
        found = read_pickled(source, file)
        return repr(sorted(found.items())).encode("utf-8", "surrogatepass"), found.values()
    if file.endswith(GGUF):
        return gguf_tensors(source, file)
    header = read_header(source, file)
    return header, parse_header(header, file=file, size=source.files[file]).values()
