"""An adapter as its reader, PEFT or a server, understands it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from deltarank.adapters.read import LoraAdapter


class ReaderNames(Protocol):
    """The names that a reader has for the tensors of the base."""

    @property
    def tied(self) -> Mapping[str, str]:
        """Tensors that the base does not store -> those that it uses in their place: the head's -> the embedding's."""

    def in_files(self, tensor: str) -> str | None:
        """The tensor of the base's files that the reader calls `tensor`; None if there is none."""

    def of_file(self, tensor: str) -> str:
        """What the reader calls a tensor of the base's files."""


@dataclass(frozen=True)
class AdapterReading:
    """What a reader makes of an adapter.

    adapter     with the parts that the reader loads, under its names
    names       the reader's names of the base's tensors
    is_exact    the parts are those that the reader loads; otherwise those that it may load
    reader      "PEFT"
    refusal     the error with which PEFT refuses the adapter; "" if it does not, or was not asked
    notes       what a user should know of the reading
    """

    adapter: LoraAdapter
    names: ReaderNames
    is_exact: bool = False
    reader: str = "PEFT"
    refusal: str = ""
    notes: tuple[str, ...] = ()
