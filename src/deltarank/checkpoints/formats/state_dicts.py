"""Which part of what a training loop saved are the weights: the whole, or a mapping in it, perhaps one of several."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from deltarank.checkpoints.escape import quoted
from deltarank.errors import CheckpointError
from deltarank.results import listing

_WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training loops save the weights beside other state."""

_AVERAGED = re.compile(r"ema|averag|swa|shadow|teacher|best|target", re.IGNORECASE)
"""In keys of a second set: the weights' average over the training, or those of another moment."""

_OTHER_STATE = re.compile(r"optim|sched|scaler|rng|loss|discriminator", re.IGNORECASE)
_MOMENTS = frozenset({"exp_avg", "exp_avg_sq", "momentum_buffer"})
"""What an optimiser keeps of each parameter."""

_MAX_WRAPPERS = 3

StateDict = Mapping[object, object]
Keys = tuple[str, ...]


@dataclass(frozen=True)
class FoundWeights:
    """tensors: the weights by name. note: which of several sets of weights they are; None if there is only one."""

    tensors: StateDict
    note: str | None = None


def find_state_dict(loaded: object, file: str) -> FoundWeights:
    """The weights of an unpickled object; empty if there are none.

    Raises:
        CheckpointError: (slug "several-checkpoints") several sets of weights, and no key says which is the model's.
    """
    sets = dict(_sets(loaded))
    path = _by_usual_key(loaded, _has_matrices)
    path = _only_other(sets, file) if path is None else path
    if path is None:
        path = _by_usual_key(loaded, _has_tensors)
        return FoundWeights({} if path is None else _at(loaded, path))
    chosen = _at(loaded, path)
    others = [other for other, mapping in sets.items() if other != path and _is_same_model(chosen, mapping)]
    if unclear := [other for other in others if not _AVERAGED.search(".".join(other)) and other[-1] in _WRAPPER_KEYS]:
        _refuse([path, *unclear], file)
    if not others:
        is_usual = not path or path[-1] in _WRAPPER_KEYS
        return FoundWeights(chosen, None if is_usual else f"of {quoted(file)}, {_shown(path)} is read")
    names = listing([_shown(other) for other in others], most=3)
    more = f"{names}, {'a further set' if len(others) == 1 else 'further sets'} of weights of this model,"
    return FoundWeights(chosen, f"of {quoted(file)}, {_shown(path)} is read; {more} {_is(others)} not")


def _sets(loaded: object, path: Keys = ()) -> Iterator[tuple[Keys, StateDict]]:
    """The mappings that hold matrices by name, and the keys that lead to them."""
    if not isinstance(loaded, Mapping) or len(path) > _MAX_WRAPPERS:
        return
    if _has_matrices(loaded) and not _MOMENTS & loaded.keys():
        yield path, loaded
    for key, value in loaded.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from _sets(value, (*path, key))


def _has_matrices(mapping: StateDict) -> bool:
    return any(isinstance(key, str) and isinstance(value, Tensor) and value.ndim > 1 for key, value in mapping.items())


def _has_tensors(mapping: StateDict) -> bool:
    return any(isinstance(value, Tensor) for value in mapping.values())


def _by_usual_key(loaded: object, is_wanted: Callable[[StateDict], bool], path: Keys = ()) -> Keys | None:
    """The keys of the whole, or of what training loops call so, perhaps one in another."""
    if not isinstance(loaded, Mapping) or len(path) > _MAX_WRAPPERS:
        return None
    if is_wanted(loaded):
        return path
    inner = (_by_usual_key(loaded.get(key), is_wanted, (*path, key)) for key in _WRAPPER_KEYS)
    return next((found for found in inner if found is not None), None)


def _only_other(sets: Mapping[Keys, StateDict], file: str) -> Keys | None:
    """The only set under a key of another name."""
    paths = [path for path in sets if not _OTHER_STATE.search(".".join(path))]
    if len(paths) > 1:
        _refuse(paths, file)
    return paths[0] if paths else None


def _at(loaded: object, path: Keys) -> StateDict:
    for key in path:
        assert isinstance(loaded, Mapping)
        loaded = loaded[key]
    assert isinstance(loaded, Mapping)
    return loaded


def _is_same_model(one: StateDict, other: StateDict) -> bool:
    """Whether most matrices of one have a counterpart of their name and shape in the other, which is stored apart."""
    ours = {name: tensor for name, tensor in one.items() if isinstance(tensor, Tensor) and tensor.ndim > 1}
    theirs = {_bare(name): tensor for name, tensor in other.items() if isinstance(tensor, Tensor)}
    both = [(tensor, theirs[_bare(name)]) for name, tensor in ours.items() if _bare(name) in theirs]
    alike = [pair for pair in both if pair[0].shape == pair[1].shape]
    return 2 * len(alike) > len(ours) and any(_place(a) != _place(b) for a, b in alike)


def _bare(name: object) -> str:
    """Without the prefixes of wrappers, which one of the two may have."""
    return str(name).removeprefix("module.").removeprefix("_orig_mod.")


def _place(tensor: Tensor) -> tuple[object, int]:
    """Where its numbers are in the file."""
    return getattr(tensor.untyped_storage(), "_checkpoint_offset", None), int(tensor.storage_offset())


def _shown(path: Keys) -> str:
    return quoted(".".join(path)) if path else "what is at its top"


def _is(names: list[Keys]) -> str:
    return "is" if len(names) == 1 else "are"


def _refuse(paths: list[Keys], file: str) -> NoReturn:
    index = "".join(f"[{key!r}]" for key in paths[0])
    raise CheckpointError(
        f"{quoted(file, max_length=300)} contains several sets of weights: "
        f"{listing([_shown(path) for path in paths], most=4)}.",
        cure=f"Save the one that is meant to a file of its own, such as: weights = torch.load(file, weights_only=True)"
        f"{ascii(index)[1:-1]}; torch.save(weights, new_file).",
        slug="several-checkpoints",
    )
