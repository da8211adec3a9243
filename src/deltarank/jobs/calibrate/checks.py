"""What a calibration needs of its models and of the plain adapter: that transformers and PEFT run them."""

from __future__ import annotations

from deltarank.checkpoints import Checkpoint
from deltarank.errors import DeltarankError, JobError
from deltarank.jobs.extract import ExtractedAdapter
from deltarank.models import ModelSkeleton, read_skeleton


def read_runnable_skeleton(checkpoint: Checkpoint) -> ModelSkeleton:
    """Raises what `read_skeleton` raises, with what helps here: to go without a calibration."""
    try:
        return read_skeleton(checkpoint)
    except DeltarankError as error:
        if error.slug == "quantised-model":
            raise  # plain extraction cannot read it either
        raise type(error)(
            error.message,
            cure="--calibrate runs both models, as transformers builds them. Leave it out: plain extraction reads the "
            "weights and runs no model.",
            slug=error.slug,
        ) from error


def check_loads(adapter: ExtractedAdapter) -> None:
    """Raises JobError (slug "calibration-needs-peft") if PEFT does not load the plain adapter."""
    if adapter.load_check.checked and adapter.load_check.loads is False:
        raise JobError(
            f"PEFT has to apply the adapter while it is trained, but {adapter.load_check.sentence}.",
            cure="Use --server peft, or leave out --calibrate.",
            slug="calibration-needs-peft",
        )
