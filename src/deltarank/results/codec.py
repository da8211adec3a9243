"""Results as JSON: what every stored result shares, with the types of all fields checked on the way in.

A file of results is passed around, so it may have been written by anybody. What does not fit its dataclass is found
when it is read, and the message names the field.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self, TypeVar

import msgspec
from msgspec import Meta

from deltarank.errors import ResultsError
from deltarank.system import nearest_path_in_words, user_path

T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""How many of something."""

Rank = Annotated[int, Meta(ge=1, lt=2**31)]

Share = Annotated[float, Meta(ge=0, le=1)]
"""A part of a whole."""

SignedShare = Annotated[float, Meta(ge=-1e6, le=1e6)]
"""A part of a whole that may be negative: what an adapter keeps, if its rounding does harm."""

Norm = Annotated[float, Meta(ge=0, le=1e150)]
"""A size of numbers. Larger ones have no squares that can be added up; no weights are of that size."""

Energy = Annotated[float, Meta(ge=0, le=1e300)]
"""The square of a norm."""

_MOST_SHOWN = 300
_ATOMS = frozenset({float, int, str, bool, type(None)})


class StoredResult:
    """A dataclass that is written as JSON and read again.

    Reading checks the type of every field and passes over fields that it does not know, which a later version may
    have added. Floats are finite. Figures that follow from others are computed again, never read.
    """

    description: ClassVar[str] = "a result"
    """What it is, for messages."""

    cure: ClassVar[str] = "Run the command that wrote it again."

    file_name: ClassVar[str | None] = None
    """Its name in a folder, where it has one."""

    readable_format: ClassVar[int | None] = None
    """The `format_version` that is read, where files have one."""

    def to_plain(self) -> dict[str, Any]:
        """As dictionaries, lists, texts and numbers."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_json(self) -> str:
        return json.dumps(self.to_plain(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            ResultsError: (slug "results-unreadable") it is something else.
        """
        return cls._parse(text, "Not")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a file, or the file of the usual name in a folder.

        Raises:
            ResultsError: (slug "results-unreadable") there is none, or it is something else.
        """
        source = user_path(path)
        if cls.file_name is not None and source.is_dir():
            source = source / cls.file_name
        try:
            text = source.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            reason = getattr(error, "strerror", None) or error
            near = nearest_path_in_words(source) if isinstance(error, FileNotFoundError) else ""
            raise cls._unreadable(f"Cannot read {source}: {reason}.{near}") from None
        return cls._parse(text, f"Cannot read {source}: not")

    @classmethod
    def _parse(cls, text: str | bytes, start_of_message: str) -> Self:
        if isinstance(text, bytes):
            text = text.removeprefix(codecs.BOM_UTF8)  # Windows' editors write one
        try:
            cls._check_format(text)
            return cls._decoded(text)
        except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
            raise cls._unreadable(f"{start_of_message} {cls.description}: {_one_line(error)}.") from None

    @classmethod
    def _decoded(cls, text: str | bytes) -> Self:
        """Overridden where numbers have to belong together. Raises ValueError where they do not."""
        return decode(cls, text)

    @classmethod
    def _check_format(cls, text: str | bytes) -> None:
        if cls.readable_format is None:
            return
        version = decode(_Format, text).format_version
        if version != cls.readable_format or isinstance(version, bool):
            raise ValueError(f"format_version is {version!r}; this deltarank reads {cls.readable_format}")

    @classmethod
    def _unreadable(cls, message: str) -> ResultsError:
        return ResultsError(message, cure=cls.cure, slug="results-unreadable")


@dataclasses.dataclass(frozen=True)
class _Format:
    format_version: Any = None


def decode(kind: type[T], text: str | bytes) -> T:
    """A dataclass from JSON.

    Raises:
        msgspec.DecodeError, UnicodeError, RecursionError: it is no JSON, or a field is not of its type.
    """
    return msgspec.json.decode(text, type=kind)


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The object on a line of JSON, its numbers finite and its texts whole; None if it is anything else."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def from_record(kind: type[T], record: Mapping[str, Any]) -> T:
    """A dataclass from a record of `parse_record`.

    Raises:
        ResultsError: (slug "results-unreadable") a field is missing, or not of its type.
    """
    try:
        return msgspec.convert(record, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise unreadable_record(kind, error) from None


def read_records(kind: type[T], records: Iterable[Mapping[str, Any]], key: str) -> Iterator[T]:
    """The records that have this key, as dataclasses; invalid records are skipped."""
    for record in records:
        if key in record:
            with suppress(ResultsError):
                yield from_record(kind, record)


def unreadable_record(kind: type, error: Exception) -> ResultsError:
    return ResultsError(
        f"Not a {kind.__name__}: {_one_line(error)}.", cure="Run the command again.", slug="results-unreadable"
    )


def to_plain(value: Any) -> Any:
    """Dataclasses and mappings as dictionaries, sequences as lists, members of an enum as their values."""
    if type(value) in _ATOMS:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [each if type(each) is float else to_plain(each) for each in value]
    return value.value if isinstance(value, StrEnum) else value


def json_line(value: Any) -> str:
    """The JSON of `to_plain(value)`, without a call for each number: a run of 50,000 matrices has millions."""
    # Only subclasses of float, such as NumPy's, reach the hook.
    return json.dumps(msgspec.to_builtins(value, str_keys=True, enc_hook=float), allow_nan=False)


def _one_line(error: Exception) -> str:
    text = ascii(str(error))[1:-1].replace("\\'", "'") or type(error).__name__
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."
