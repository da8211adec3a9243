"""A job of `outputs` before a weight is read: everything opened, checked and planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deltarank.adapters import CONFIG, open_adapter
from deltarank.checkpoints import PLAIN, Checkpoint, open_checkpoint, pair_checkpoints
from deltarank.divergence import Document, Prompt, read_prompts, read_texts
from deltarank.errors import CheckpointError, UsageError
from deltarank.jobs.outputs.candidates import Stage
from deltarank.jobs.outputs.options import ANY_RANK, BASE, CONTROLS, Brief, Ref, content_of
from deltarank.jobs.outputs.plan import WINDOW, OutputsPlan, part_names, room_on, stored_dtype
from deltarank.models import Home, blueprint, check_room, difference, fitting, moved_tokens, tokenizer_of, yardstick
from deltarank.runtime import Watch


@dataclass(frozen=True)
class Job:
    """Two checkpoints, what is compared on what, and the plan.

    texts            the documents of each text that was given, in the finetune's tokens
    given            hashes of what was given beside the checkpoints
    """

    stage: Stage
    plan: OutputsPlan
    tokenizer: Any
    texts: Sequence[tuple[str, Sequence[Document]]]
    prompts: Sequence[Prompt]
    given: Mapping[str, str]

    @property
    def brief(self) -> Brief:
        return self.plan.brief

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be equal for one process to go on with another's work.

        Not the size of a batch, which moves the last digits only: where memory was not enough, a smaller one goes on.
        """
        settings = self.brief.to_plain()
        del settings["batch"]
        return {
            "tool_version": version("deltarank"),
            "base": self.stage.before.fingerprint,
            "finetune": self.stage.after.fingerprint,
            "given": dict(self.given),
            "settings": settings,
        }


@contextmanager
def prepared(
    brief: Brief, base: Ref, finetune: Ref, revisions: tuple[str | None, str | None], fetch: str, watch: Watch
) -> Iterator[Job]:
    """Raises what `deltarank.outputs` says. `revisions`: the base's and the finetune's."""
    ours, theirs = revisions
    with (
        open_checkpoint(base, revision=ours, fetch=fetch, tell=watch.noted) as before,
        open_checkpoint(finetune, revision=theirs, fetch=fetch, tell=watch.noted) as after,
    ):
        yield _planned(brief.resolved(stored_dtype(after, PLAIN)), before, after, fetch)


def _planned(brief: Brief, before: Checkpoint, after: Checkpoint, fetch: str) -> Job:
    stage = _stage(brief, before, after, fetch)
    tokenizer = tokenizer_of(stage.plan.home, trust_remote_code=brief.trust_remote_code)
    given, notes = _looked_at(brief, tokenizer, fetch)
    window = min(WINDOW, stage.plan.context, stage.base_plan.context)
    texts = read_texts([Path(text) for text in brief.texts], tokenizer, context=window)
    prompts, left_out = _asked(brief, tokenizer, min(stage.plan.context, stage.base_plan.context))
    plan = OutputsPlan(
        brief=brief,
        base=before,
        finetune=after,
        plan=stage.plan,
        pairing=stage.pairing,
        candidates=candidate_names(brief),
        documents=tuple(len(document.ids) for _, documents in texts for document in documents),
        prompts=len(prompts),
        parts=len(part_names(stage.pairing, brief.attribute)),
        room=room_on(brief.device),
        notes=(*_of_tokenizers(stage, tokenizer), *notes, *left_out),
    )
    if plan.streams and prompts:
        _refuse_streamed_answers(plan)
    return Job(stage, plan, tokenizer, texts, prompts, given)


def _asked(brief: Brief, tokenizer: Any, context: int) -> tuple[list[Prompt], list[str]]:
    """The prompts, and a note of built-in ones that a short context has no room for; the user's own must all fit."""
    if not brief.samples:
        return [], []
    found = read_prompts(Path(brief.prompts) if brief.prompts else None)
    room = {"max_tokens": brief.max_tokens, "context": context}
    kept = found if brief.prompts else fitting(found, tokenizer, **room)
    check_room(kept or found, tokenizer, **room)
    if len(kept) == len(found):
        return kept, []
    left = f"{len(found) - len(kept)} of {len(found)} built-in prompts"
    return kept, [f"{left} leave no room for {brief.max_tokens:,} tokens in the model's {context:,}: left out"]


def _stage(brief: Brief, before: Checkpoint, after: Checkpoint, fetch: str) -> Stage:
    trust = brief.trust_remote_code
    pairing = pair_checkpoints(before, after)
    ours, theirs = (blueprint(each, trust_remote_code=trust) for each in (before, after))
    return Stage(before, after, pairing, ours, theirs, brief.device, trust, fetch)


def candidate_names(brief: Brief) -> tuple[str, ...]:
    """In the order of their turns."""
    ranks = [f"rank {rank}" for rank in brief.ranks]
    return (
        *CONTROLS,
        BASE,
        *ranks,
        ANY_RANK,
        *brief.adapter_names,
        *brief.model_names,
        *brief.yardsticks,
    )


def _of_tokenizers(stage: Stage, tokenizer: Any) -> Iterator[str]:
    """How the base's tokenizer differs: the finetune's is used for all."""
    try:
        other = tokenizer_of(stage.base_plan.home, trust_remote_code=stage.trust_remote_code)
    except CheckpointError:
        yield "the base has no tokenizer beside it; the finetune's is used for all"
        return
    if (how := difference(tokenizer, other)) is not None:
        yield f"the base's tokenizer differs: {how}; the finetune's is used for all"
    rows = stage.base_plan.vocabulary, stage.plan.vocabulary
    if rows[0] != rows[1]:
        yield (
            f"the vocabularies differ: {rows[0]:,} tokens in the base, {rows[1]:,} in the finetune; what both have is "
            "compared"
        )


def _looked_at(brief: Brief, tokenizer: Any, fetch: str) -> tuple[dict[str, str], list[str]]:
    """Hashes of everything that was given, and notes; what cannot be meant is refused before an hour is spent."""
    for name in brief.yardsticks:
        yardstick(name)
    given = {"texts": content_of(brief.texts), "prompts": content_of([brief.prompts] if brief.prompts else [])}
    notes: list[str] = []
    for folder in brief.adapters:
        with open_adapter(folder) as lora:
            given[folder] = lora.file.fingerprint + content_of([str(Path(folder) / CONFIG)])
    for ref in brief.models:
        with open_checkpoint(ref, fetch=fetch) as other:
            given[ref] = other.fingerprint
            notes += _of_model(ref, other, tokenizer, brief.trust_remote_code)
    return given, notes


def _of_model(ref: str, other: Checkpoint, tokenizer: Any, trust: bool) -> Iterator[str]:
    """Raises UsageError (slug "tokenizers-differ") for a model to which our tokens are other words."""
    try:
        theirs = tokenizer_of(Home.of(other), trust_remote_code=trust)
    except CheckpointError:
        yield f"{ref} has no tokenizer beside it; the finetune's is used"
        return
    if moved := moved_tokens(tokenizer, theirs):
        raise UsageError(
            f"{ref!a} has another tokenizer than the finetune: {len(moved):,} tokens have another number, such as "
            f"{moved[0]!a}.",
            cure="Only models that read the same tokens can be compared token by token.",
            slug="tokenizers-differ",
        )
    if (how := difference(tokenizer, theirs)) is not None:
        yield f"the tokenizer of {ref} differs: {how}; the finetune's is used"


def _refuse_streamed_answers(plan: OutputsPlan) -> None:
    raise UsageError(
        f"the models do not fit into memory whole ({plan.figures}), and streamed, each written token would read a "
        "whole checkpoint.",
        cure="Use --samples 0 and --text FILE (answers of the finetune that a server wrote make a good text), or "
        "--dtype bfloat16, or a machine with more memory.",
        slug="cannot-write-streamed",
    )
