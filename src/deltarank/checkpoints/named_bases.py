"""The base that a model card or an adapter's configuration names, beside the base that was given."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.hub_cache import hub_id
from deltarank.results import Reference, listing

if TYPE_CHECKING:
    from deltarank.checkpoints.checkpoint import Checkpoint

MODEL_CARD = "README.md"

_MAX_CARD_BYTES = 1_000_000
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_COPY = re.compile(
    r"[-_.](gguf|ggml|gptq|awq|exl2|mlx|mxfp4|nvfp4|hqq|bnb|unsloth|hf|bf16|fp16|fp32|fp8|nf4|fp4|int8|int4|w\da\d+|"
    r"\d-?bits?|(q|iq)\d(_\w+)?|quantized|dynamic)(?=$|[-_.])",
    re.IGNORECASE,
)
"""Parts of the names of copies in another format."""


def read_named_bases(folder: Path) -> tuple[str, ...]:
    """The Hub ids under `base_model` in the front matter of the model card; empty if there is none that can be read."""
    card = folder / MODEL_CARD
    try:
        if not card.is_file() or card.stat().st_size > _MAX_CARD_BYTES:
            return ()
        from huggingface_hub import metadata_load

        data = metadata_load(card)
    except Exception:  # YAML that people wrote, and the loader's errors have no common base class
        return ()
    named = data.get("base_model") if isinstance(data, dict) else None
    return hub_ids(named if isinstance(named, list) else [named])


def hub_ids(names: Iterable[object]) -> tuple[str, ...]:
    """Those that are Hub ids, and neither paths nor anything else."""
    return tuple(name for name in names if isinstance(name, str) and _HUB_ID.fullmatch(name) and name[0] not in ".~")


def may_be_one_model(one: str, other: str) -> bool:
    """Whether two Hub ids have one name, whatever their organisations and formats are."""
    return _bare_name(one) == _bare_name(other)


def _bare_name(hub_id: str) -> str:
    return re.sub(r"[-_.]+", "-", _COPY.sub("", hub_id.rpartition("/")[2])).lower()


def hub_id_of(reference: Reference) -> str | None:
    """The Hub id of a model that was read from the Hub or its cache; None of other folders, whose names say little."""
    return reference.ref if reference.revision is not None else hub_id(Path(reference.ref))


def other_base_note(base: Checkpoint, named: Iterable[str], who: str) -> str | None:
    """A note if only other models than the base are named.

    Args:
        who: what names them: "the model card of `org/name`".
    """
    given, named = hub_id_of(base.reference), tuple(named)
    if given is None or not named or any(may_be_one_model(given, each) for each in named):
        return None
    names = listing([quoted(each) for each in named], most=3)
    are = "model" if len(named) == 1 else "models"
    return (
        f"{who} names {names} as the base {are}, and the base given is {quoted(given)}: check that it is the right one"
    )
