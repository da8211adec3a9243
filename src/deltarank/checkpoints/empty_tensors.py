"""Tensors without numbers, or flattened by a trainer: a state that was saved without its partitions being gathered."""

from __future__ import annotations

from collections.abc import Mapping

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pieces import FLOAT_DTYPES
from deltarank.errors import HeaderError
from deltarank.results import count

_FLAT = "_flat_param"
_EXTRA_STATE = "_extra_state"
"""A buffer of Transformer Engine, which may be empty."""

_CURE = (
    "Convert the training checkpoint: DeepSpeed puts `zero_to_fp32.py` into it (`python zero_to_fp32.py . output`). Or "
    "save again with all partitions gathered: `stage3_gather_16bit_weights_on_model_save` in DeepSpeed's "
    "configuration, `accelerator.get_state_dict(model)` in a loop of your own."
)


def refuse_partitioned(tensors: Mapping[str, TensorInfo]) -> None:
    """Raises:
    HeaderError: (slug "empty-tensors") weights have no numbers, as ZeRO-3 leaves them, or are in FSDP's flat tensors.
    """
    flat = [name for name in tensors if name.rsplit(".", 1)[-1].startswith(_FLAT)]
    empty = [name for name, info in tensors.items() if _is_empty(info)]
    for names, what in (
        (empty, "are empty (shape 0), as DeepSpeed's ZeRO-3 leaves weights that it partitioned"),
        (flat, "are flattened, as torch's FSDP keeps weights that it partitioned"),
    ):
        if names:
            total = count(len(tensors), "tensor")
            raise HeaderError(
                f"{len(names):,} of {total} {what}, such as {quoted(names[0])}.", cure=_CURE, slug="empty-tensors"
            )


def _is_empty(info: TensorInfo) -> bool:
    return info.shape == (0,) and info.dtype in FLOAT_DTYPES and not info.name.endswith(_EXTRA_STATE)
