"""What the user should know of a pairing beside its lists: a sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.escape import shown
from deltarank.checkpoints.formats.storage import Storage
from deltarank.checkpoints.pairing.names import Place
from deltarank.checkpoints.pieces import Pair
from deltarank.results import count, percent

_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


def notes_on(
    base: Checkpoint,
    finetune: Checkpoint,
    pairs: Sequence[Pair],
    places: tuple[Mapping[str, Place], Mapping[str, Place]],
) -> tuple[str, ...]:
    """In the order in which a reader would ask."""
    notes = [_models(base, finetune), _layers(*places), _conv1d(base, finetune)]
    notes += _storages(pairs) or quantised(base, finetune)
    notes += _types(pairs)
    return (*base.notes, *finetune.notes, *(note for note in notes if note))


def _models(base: Checkpoint, finetune: Checkpoint) -> str | None:
    kinds = [checkpoint.config.get("model_type") for checkpoint in (base, finetune)]
    if not all(isinstance(kind, str) for kind in kinds) or kinds[0] == kinds[1]:
        return None
    return f"the base calls itself {shown(kinds[0], most=40)} and the finetune {shown(kinds[1], most=40)}"


def _layers(base: Mapping[str, Place], finetune: Mapping[str, Place]) -> str | None:
    ours, theirs = _number(finetune.values()), _number(base.values())
    if ours == theirs:
        return None
    return f"the base has {count(theirs, 'layer')} and the finetune {ours:,}: layers of the same number are compared"


def _number(places: Iterable[Place]) -> int:
    return len({place.layer for place in places} - {None})


def quantised(base: Checkpoint, finetune: Checkpoint) -> list[str]:
    """A sentence for each side whose configuration says so."""
    sides = (("base", base), ("finetune", finetune))
    found = [(side, checkpoint.config.get("quantization_config")) for side, checkpoint in sides]
    return [
        f"the {side} is stored quantised ({shown(how.get('quant_method', 'no method named'), most=40)})"
        for side, how in found
        if isinstance(how, dict)
    ]


def _storages(pairs: Sequence[Pair]) -> list[str]:
    """A sentence for each quantised format of each side, with the floor under which a delta is lost in it."""
    base = Counter(pair.base.storage for pair in pairs if pair.base.storage)
    finetune = Counter(pair.finetune.storage for pair in pairs if pair.finetune.storage)
    notes = [_storage("base", number, storage) for storage, number in base.most_common()]
    return notes + [_storage("finetune", number, storage) for storage, number in finetune.most_common()]


def _storage(side: str, number: int, storage: Storage) -> str:
    stored = f"the {side} is stored as {storage.name} ({count(number, 'matrix', 'matrices')})"
    if not storage.error:
        return stored
    floor = f"rounding to it moves weights by about {percent(storage.error)} of their size"
    if side == "base":
        return f"{stored}: {floor}, and unless the finetune began from this very copy, that much is in the delta"
    return f"{stored}: {floor}, which is in the delta and is counted in the rounding floor"


def _conv1d(base: Checkpoint, finetune: Checkpoint) -> str | None:
    if not any(str(checkpoint.config.get("model_type")) in _CONV1D for checkpoint in (base, finetune)):
        return None
    return (
        "this model stores its matrices transposed (Conv1D: inputs x outputs); what a rank keeps is the same either way"
    )


def _types(pairs: Sequence[Pair]) -> list[str]:
    plain = [pair for pair in pairs if not (pair.base.storage or pair.finetune.storage)]
    differing = Counter(pair.dtype for pair in plain if pair.base.dtype != pair.finetune.dtype)
    return [
        f"{count(number, 'matrix is', 'matrices are')} stored in two types ({types}, base -> finetune): "
        "the rounding of the coarser one is part of the change"
        for types, number in differing.most_common()
    ]
