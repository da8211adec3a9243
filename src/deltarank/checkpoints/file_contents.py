"""What a file is whose contents are not what its name says: a Git LFS pointer, a web page, an archive, another format.

It is looked at only after its own format was not found in it, so a good file costs no read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.file_errors import COPY_AGAIN
from deltarank.checkpoints.source import Source
from deltarank.errors import HeaderError
from deltarank.results import size as readable_size

INSPECTED_BYTES = 1024

LFS_CURE = (
    "Fetch the files themselves: run `git lfs install` and `git lfs pull` in the cloned repository, or "
    "`hf download org/name --local-dir DIR`."
)
_PAGE_CURE = (
    "Download the file itself. On the Hub, its address has `/resolve/` where that of its page has `/blob/`, and gated "
    "or private models need a token; `hf download org/name` does all of this."
)
_LFS_POINTER = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/v\d+\s")
_LFS_SIZE = re.compile(rb"^size (\d{1,18})\s*$", re.MULTILINE)
_XET_POINTER = re.compile(rb"# xet version \d")
_PAGE = re.compile(rb"\s*<(?:!doctype html|html|head|\?xml|!--)", re.IGNORECASE)
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+")

_RENAME = "Rename it so that its name ends in {suffix}, as its contents demand; or download the file again."
_UNPACK = "Unpack it, and give the path of the weights that were in it."
_CONVERT = "Give weights in safetensors, torch's `.bin` or GGUF. Other formats must be converted first."
_MAC_CURE = "Give the file whose name does not begin with `._`."

_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive, as torch writes `.bin` and `.pt` files", _RENAME.format(suffix="`.bin`")),
    (b"GGUF", "a GGUF file", _RENAME.format(suffix="`.gguf`")),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file of TensorFlow or Keras", _CONVERT),
    (b"\x93NUMPY", "an array of numpy", _CONVERT),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x00\x05\x16\x07", "metadata that macOS keeps beside a file (AppleDouble), not the file itself", _MAC_CURE),
)
_TAR_MAGIC = slice(257, 262)


@dataclass(frozen=True)
class OtherContent:
    """What a file is instead of what its name says: a phrase, what to do, and the slug of the error."""

    what: str
    cure: str
    slug: str


def refuse_other_content(source: Source, file: str) -> None:
    """Raises:
    HeaderError: (slugs "empty-file", "lfs-pointer", slug="not-weights") the beginning of the file shows what it is.
    """
    start = bytearray(min(source.files[file], INSPECTED_BYTES))
    source.read_into(file, 0, memoryview(start))
    refuse_content(bytes(start), file)


def refuse_content(start: bytes, file: object) -> None:
    """As `refuse_other_content`, of the first bytes of a file."""
    other = recognise(start)
    if other is not None:
        raise HeaderError(f"{quoted(file, max_length=300)} is {other.what}.", cure=other.cure, slug=other.slug)


def refuse_pointer(start: bytes, file: object) -> None:
    """Raises:
    HeaderError: (slug "lfs-pointer") these first bytes are a pointer in place of a small file, such as config.json.
    """
    other = recognise(start[:INSPECTED_BYTES])
    if other is not None and other.slug == "lfs-pointer":
        refuse_content(start[:INSPECTED_BYTES], file)


def recognise(start: bytes) -> OtherContent | None:
    """The content that these first bytes show; None if they show nothing."""
    if not start:
        return OtherContent("empty (0 bytes): a download or a copy failed", COPY_AGAIN, slug="empty-file")
    if _LFS_POINTER.match(start):
        meant = _LFS_SIZE.search(start)
        stands = f" of {readable_size(int(meant[1]))}" if meant else ""
        return OtherContent(f"a Git LFS pointer, a short text in place of a file{stands}", LFS_CURE, slug="lfs-pointer")
    if _XET_POINTER.match(start):
        return OtherContent("a Xet pointer, a short text in place of the file", LFS_CURE, slug="lfs-pointer")
    if _PAGE.match(start):
        return OtherContent("a web page, not weights", _PAGE_CURE, slug="not-weights")
    for signature, what, cure in _SIGNATURES:
        if start.startswith(signature):
            return OtherContent(what, cure, slug="not-weights")
    if start[_TAR_MAGIC] == b"ustar":
        return OtherContent("a tar archive", _UNPACK, slug="not-weights")
    if not start.strip(b"\0"):
        return OtherContent(
            "nothing but zeros at its beginning: a download did not finish", COPY_AGAIN, slug="not-weights"
        )
    if _TEXT.fullmatch(start):
        line = start[:80].decode("utf-8", "replace").strip()
        return OtherContent(f"text, not weights; it begins with {quoted(line)}", _PAGE_CURE, slug="not-weights")
    return None
