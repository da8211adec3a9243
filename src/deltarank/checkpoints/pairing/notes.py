"""Notes about a pairing that the user should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.storage import StorageFormat
from deltarank.checkpoints.named_bases import other_base_note
from deltarank.checkpoints.pairing.names import Location
from deltarank.checkpoints.pieces import Pair
from deltarank.results import count, percent

_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


def notes_on(
    base: Checkpoint,
    finetune: Checkpoint,
    pairs: Sequence[Pair],
    locations: tuple[Mapping[str, Location], Mapping[str, Location]],
) -> tuple[str, ...]:
    """The most important first. `locations` are the base's and the finetune's."""
    notes: list[str | None] = [_model_types(base, finetune), _layer_counts(*locations), _conv1d(base, finetune)]
    if finetune.added is None:
        notes += _storage_formats(pairs) or quantised_sides(base, finetune)
        notes += _mixed_dtypes(pairs)
    else:  # what the adapter adds is the delta, which contains no rounding of the base
        notes += [
            f"the base is stored as {name}: the adapter is added to its decoded weights" for name in _formats(pairs)
        ]
    source = "adapter_config.json" if finetune.added is not None else "the model card"
    notes += [other_base_note(base, finetune.named_bases, f"{source} of {quoted(finetune.reference.ref)}")]
    return (*base.notes, *finetune.notes, *(note for note in notes if note))


def _model_types(base: Checkpoint, finetune: Checkpoint) -> str | None:
    kinds = [checkpoint.config.get("model_type") for checkpoint in (base, finetune)]
    if not all(isinstance(kind, str) for kind in kinds) or kinds[0] == kinds[1]:
        return None
    base_type, finetune_type = (quoted(kind, max_length=40) for kind in kinds)
    return f"the model type is {base_type} in the base and {finetune_type} in the finetune"


def _layer_counts(base: Mapping[str, Location], finetune: Mapping[str, Location]) -> str | None:
    in_base, in_finetune = (len({each.layer for each in side.values()} - {None}) for side in (base, finetune))
    if in_base == in_finetune:
        return None
    counts = f"the base has {count(in_base, 'layer')} and the finetune {in_finetune:,}"
    return f"{counts}: layers with equal numbers are compared"


def quantised_sides(base: Checkpoint, finetune: Checkpoint) -> list[str]:
    """A note for each side that is quantised according to its configuration."""
    sides = (("base", base), ("finetune", finetune))
    settings = [(side, checkpoint.config.get("quantization_config")) for side, checkpoint in sides]
    return [
        f"the {side} is stored quantised ({quoted(config.get('quant_method', 'no method named'), max_length=40)})"
        for side, config in settings
        if isinstance(config, dict)
    ]


def _storage_formats(pairs: Sequence[Pair]) -> list[str]:
    """A note for each quantised format of each side, with its rounding error."""
    base = Counter(pair.base.storage for pair in pairs if pair.base.storage)
    finetune = Counter(pair.finetune.storage for pair in pairs if pair.finetune.storage)
    notes = [_storage_format("base", number, storage) for storage, number in base.most_common()]
    return notes + [_storage_format("finetune", number, storage) for storage, number in finetune.most_common()]


def _formats(pairs: Sequence[Pair]) -> list[str]:
    """The quantised formats of the base."""
    return list(dict.fromkeys(pair.base.storage.name for pair in pairs if pair.base.storage))


def _storage_format(side: str, number: int, storage: StorageFormat) -> str:
    stored = f"the {side} is stored as {storage.name} ({count(number, 'matrix', 'matrices')})"
    if not storage.rounding_error:
        return stored
    error = f"rounding to it changes weights by about {percent(storage.rounding_error)} of their size"
    if side == "base":
        return f"{stored}: {error}; unless the finetune was trained from this very copy, the delta contains that error"
    return f"{stored}: {error}; the delta contains that error, and the rounding floor accounts for it"


def _conv1d(base: Checkpoint, finetune: Checkpoint) -> str | None:
    if not any(str(checkpoint.config.get("model_type")) in _CONV1D for checkpoint in (base, finetune)):
        return None
    return "this model stores its matrices transposed (Conv1D: inputs x outputs), which does not change any figure"


def _mixed_dtypes(pairs: Sequence[Pair]) -> list[str]:
    plain = [pair for pair in pairs if not (pair.base.storage or pair.finetune.storage)]
    dtypes = Counter(pair.dtype for pair in plain if pair.base.dtype != pair.finetune.dtype)
    return [
        f"{count(number, 'matrix has', 'matrices have')} different dtypes in base and finetune ({dtype}): the delta "
        "contains the rounding of the coarser one"
        for dtype, number in dtypes.most_common()
    ]
