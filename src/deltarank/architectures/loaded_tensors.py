"""The parameters of a class, made from a file's tensors by transformers' own conversion mapping.

It follows `transformers.core_model_loading.convert_and_load_state_dict_in_model` on the meta device, where merging and
splitting tensors gives names and shapes, and takes neither memory nor time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conversion:
    """How some parameters of the class are made.

    sources     tensors of the file, in the order in which they are used
    parameters  the parameters made from them, with their shapes
    operations  what is done with them: ("MergeModulelist", "Concatenate"); empty if a tensor is only renamed
    """

    sources: tuple[str, ...]
    parameters: Mapping[str, Shape]
    operations: tuple[str, ...] = ()

    @property
    def is_renaming(self) -> bool:
        """Whether the parameter is the file's tensor, entry by entry."""
        return not self.operations


@dataclass(frozen=True)
class LoadedTensors:
    """What the class makes of a file's tensors.

    conversions  one for each parameter, or group of parameters, whose shapes fit the class
    unused       tensors of the file that the class has no place for, or of which it cannot make a parameter
    mismatched   (tensor, its shape as loaded, shape of the parameter) where the two shapes differ
    missing      parameters that are made from no tensor; some of them may be tied to others
    """

    conversions: tuple[Conversion, ...]
    unused: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    missing: tuple[str, ...]

    @cached_property
    def renamed(self) -> Mapping[str, str]:
        """The parameter of each tensor that is only renamed, or keeps its name."""
        simple = (each for each in self.conversions if each.is_renaming)
        return {each.sources[0]: next(iter(each.parameters)) for each in simple}

    @cached_property
    def by_source(self) -> Mapping[str, Conversion]:
        """The conversion that uses a tensor of the file."""
        return {source: each for each in self.conversions for source in each.sources}

    @cached_property
    def by_parameter(self) -> Mapping[str, Conversion]:
        """The conversion that makes a parameter."""
        return {name: each for each in self.conversions for name in each.parameters}


def load_tensors(model: Any, tensors: Mapping[str, Sequence[int]]) -> LoadedTensors:
    """Loads tensors of these names and shapes into a model on the meta device, which stays as it is."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    placements, unused = _place(model, tensors, expected)
    conversions: list[Conversion] = []
    mismatched: list[tuple[str, Shape, Shape]] = []
    for first, placement in placements.items():
        conversion = _convert(model, first, placement)
        if conversion is None or not conversion.parameters.keys() <= expected.keys():
            unused += placement.sources
        elif differing := [name for name, shape in conversion.parameters.items() if shape != expected[name]]:
            name = differing[0]
            mismatched.append((placement.sources[0], conversion.parameters[name], expected[name]))
        else:
            conversions.append(conversion)
    made = {name for each in conversions for name in each.parameters}
    missing = tuple(name for name in expected if name not in made)
    return LoadedTensors(tuple(conversions), tuple(unused), tuple(mismatched), missing)


@dataclass
class _Placement:
    """A transform of transformers with the tensors that it collected, in order."""

    transform: Any
    sources: list[str]


def _place(
    model: Any, tensors: Mapping[str, Sequence[int]], expected: Mapping[str, Shape]
) -> tuple[dict[str, _Placement], list[str]]:
    """The transform of each parameter that tensors of the file are collected for; and the tensors without one."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    known = dict(expected)
    placements: dict[str, _Placement] = {}
    unused = []
    for name in sorted(tensors, key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if key not in expected and name in expected:
            key, pattern = name, None
        if key not in expected:
            unused.append(name)
            continue
        if key not in placements:
            new = WeightRenaming(name, key) if pattern is None else deepcopy(by_pattern[pattern])
            placements[key] = _Placement(new, [])
        tensor = torch.empty(tuple(tensors[name]), device="meta")
        placements[key].transform.add_tensor(key, name, name if pattern is None else pattern, tensor)
        placements[key].sources.append(name)
    return placements, unused


def _convert(model: Any, first: str, placement: _Placement) -> Conversion | None:
    """None where transformers cannot make the parameter from these tensors."""
    transform = placement.transform
    try:
        made = dict(_first_tensors(transform.convert(first, model=model, config=model.config)))
    except Exception:  # operations check their inputs with errors of many kinds
        return None
    operations = tuple(type(each).__name__ for each in getattr(transform, "operations", ()))
    return Conversion(
        tuple(placement.sources), {name: tuple(tensor.shape) for name, tensor in made.items()}, operations
    )


def _first_tensors(made: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in made.items():
        yield name, value[0] if isinstance(value, list) else value
