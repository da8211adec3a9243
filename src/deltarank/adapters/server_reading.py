"""An adapter as an inference server reads it: by the keys of its file, with or without PEFT's prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType

from deltarank.adapters.class_names import ClassNames, FileNames
from deltarank.adapters.keys import PREFIX
from deltarank.adapters.parts import AdapterPart, LoadEffect, UnusedTensor
from deltarank.adapters.read import LoraAdapter
from deltarank.adapters.reading import AdapterReading
from deltarank.adapters.server_refusals import check_loadable
from deltarank.checkpoints import Checkpoint
from deltarank.errors import AdapterError
from deltarank.servers import Server, get_server


class ServerNames:
    """Servers read the names of the files, and most also those of transformers' class."""

    def __init__(
        self,
        base: Checkpoint,
        *,
        optional_prefixes: Sequence[str] = (),
        replaced_prefixes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._base, self._files = base, FileNames(base)
        self._optional, self._replaced = optional_prefixes, replaced_prefixes

    @property
    def tied(self) -> Mapping[str, str]:
        return self._files.tied

    def in_files(self, tensor: str) -> str | None:
        if tensor.partition("[")[0] in self._base.tensors:
            return tensor
        if (found := self._names_in_server.get(self._name_in_server(tensor))) is not None:
            return found
        return tensor if isinstance(self._class, str) else self._class.in_files(tensor)

    def _name_in_server(self, tensor: str) -> str:
        """The name with the prefixes that the server has, without those that it ignores."""
        for prefix, other in self._replaced.items():
            if tensor.startswith(prefix):
                tensor = other + tensor.removeprefix(prefix)
                break
        while prefix := next((each for each in self._optional if tensor.startswith(each)), ""):
            tensor = tensor.removeprefix(prefix)
        return tensor

    @cached_property
    def _names_in_server(self) -> Mapping[str, str]:
        if not (self._optional or self._replaced):
            return {}
        return {self._name_in_server(name): name for name in self._base.tensors}

    def of_file(self, tensor: str) -> str:
        return tensor

    @cached_property
    def _class(self) -> ClassNames | str:
        return ClassNames.of(self._base)


def read_as_server(adapter: LoraAdapter, base: Checkpoint, server: Server) -> AdapterReading:
    """The parts that a server finds, under the names in the base.

    Raises:
        AdapterError: (slug "adapter-refused") the server does not load the adapter.
    """
    names = ServerNames(
        base,
        optional_prefixes=server.optional_prefixes,
        replaced_prefixes=server.replaced_prefixes(base.config),
    )
    unused = tuple(map(_without_random_numbers, adapter.unused))
    read = replace(adapter, parts=tuple(map(_without_prefix, adapter.parts)), unused=unused)
    check_loadable(read, server, names, base)
    return AdapterReading(read, names, reader=server.title)


def read_as_mlx(adapter: LoraAdapter, base: Checkpoint, server: str | None) -> AdapterReading:
    """An adapter of mlx-lm as mlx-lm reads it.

    Raises:
        AdapterError: (slug "adapter-refused") a server was named.
    """
    if server is not None:
        raise AdapterError(
            f"{get_server(server).title} does not load this adapter: it is an adapter of mlx-lm, and PEFT and the "
            "servers do not read its files.",
            cure="Omit --server to measure it as mlx-lm applies it, or make another with `deltarank extract --server`.",
            slug="adapter-refused",
        )
    note = "this is an adapter of mlx-lm, applied as mlx-lm applies it: PEFT and the servers do not load its files"
    return AdapterReading(adapter, ServerNames(base), is_exact=True, reader="mlx-lm", notes=(note,))


def _without_prefix(part: AdapterPart) -> AdapterPart:
    """vLLM and llama.cpp's converter remove PEFT's prefix wherever it stands."""
    return replace(part, module=part.module.replace(PREFIX, ""), tensor=part.tensor.replace(PREFIX, ""))


def _without_random_numbers(entry: UnusedTensor) -> UnusedTensor:
    """PEFT alone puts random numbers in the place of a missing factor; a server that loads the rest puts nothing."""
    return replace(entry, effect=LoadEffect.NONE) if entry.effect is LoadEffect.RANDOM else entry
