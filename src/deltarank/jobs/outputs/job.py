"""A job of `outputs` before a weight is read: everything opened, checked and planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltarank.adapters import CONFIG_FILE, open_adapter
from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, open_checkpoint, pair_checkpoints
from deltarank.divergence import (
    Document,
    Prompt,
    Tokenizer,
    encode_prompts,
    prompts_that_fit,
    read_prompts,
    read_texts,
)
from deltarank.errors import CheckpointError, UsageError
from deltarank.jobs.outputs.candidates import ModelPair
from deltarank.jobs.outputs.options import ANY_RANK, BASE, CONTROLS, OutputsOptions, Ref, content_of
from deltarank.jobs.outputs.plan import WINDOW, OutputsPlan, part_names, room_on, stored_dtype
from deltarank.models import (
    ModelFolder,
    changed_token_ids,
    describe_difference,
    get_yardstick,
    load_tokenizer,
    read_skeleton,
)
from deltarank.runtime import ProgressListener
from deltarank.system import tool_version


@dataclass(frozen=True)
class Job:
    """Two checkpoints, what is compared on what, and the plan.

    texts            the documents of each text that was given, in the finetune's tokens
    given            hashes of what was given beside the checkpoints
    """

    models: ModelPair
    plan: OutputsPlan
    tokenizer: Tokenizer
    texts: Sequence[tuple[str, Sequence[Document]]]
    prompts: Sequence[Prompt]
    given: Mapping[str, str]

    @property
    def options(self) -> OutputsOptions:
        return self.plan.options

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be equal for one process to go on with another's work.

        Not the size of a batch, which moves the last digits only: where memory was not enough, a smaller one goes on.
        """
        settings = self.options.to_plain()
        del settings["batch"]
        return {
            "tool_version": tool_version(),
            "base": self.models.before.fingerprint,
            "finetune": self.models.after.fingerprint,
            "given": dict(self.given),
            "settings": settings,
        }


@contextmanager
def prepared(
    options: OutputsOptions,
    base: Ref,
    finetune: Ref,
    revisions: tuple[str | None, str | None],
    fetch: str,
    progress: ProgressListener,
) -> Iterator[Job]:
    """Raises what `deltarank.outputs` says. `revisions`: the base's and the finetune's."""
    ours, theirs = revisions
    with (
        open_checkpoint(base, revision=ours, fetch=fetch, on_note=progress.noted) as before,
        open_checkpoint(finetune, revision=theirs, fetch=fetch, on_note=progress.noted) as after,
    ):
        yield _planned(options.resolved(stored_dtype(after, FLOAT_DTYPES)), before, after, fetch)


def _planned(options: OutputsOptions, before: Checkpoint, after: Checkpoint, fetch: str) -> Job:
    models = _stage(options, before, after, fetch)
    tokenizer = load_tokenizer(models.skeleton.folder, trust_remote_code=options.trust_remote_code)
    given, notes = _looked_at(options, tokenizer, fetch)
    window = min(WINDOW, models.skeleton.context, models.base_skeleton.context)
    texts = read_texts([Path(text) for text in options.texts], tokenizer, context=window)
    prompts, left_out = _asked(options, tokenizer, min(models.skeleton.context, models.base_skeleton.context))
    plan = OutputsPlan(
        options=options,
        base=before,
        finetune=after,
        skeleton=models.skeleton,
        pairing=models.pairing,
        candidates=candidate_names(options),
        documents=tuple(len(document.ids) for _, documents in texts for document in documents),
        prompts=len(prompts),
        parts=len(part_names(models.pairing, options.attribute)),
        room=room_on(options.device),
        notes=(*_of_tokenizers(models, tokenizer), *notes, *left_out),
    )
    if plan.streams and prompts:
        _refuse_streamed_answers(plan)
    return Job(models, plan, tokenizer, texts, prompts, given)


def _asked(options: OutputsOptions, tokenizer: Tokenizer, context: int) -> tuple[list[Prompt], list[str]]:
    """The prompts, and a note of built-in ones that a short context has no room for; the user's own must all fit."""
    if not options.samples:
        return [], []
    found = read_prompts(Path(options.prompts) if options.prompts else None)
    room = {"max_tokens": options.max_tokens, "context": context}
    kept = found if options.prompts else prompts_that_fit(found, tokenizer, **room)
    encode_prompts(kept or found, tokenizer, **room)
    if len(kept) == len(found):
        return kept, []
    left = f"{len(found) - len(kept)} of {len(found)} built-in prompts"
    return kept, [f"{left} leave no room for {options.max_tokens:,} tokens in the model's {context:,}: left out"]


def _stage(options: OutputsOptions, before: Checkpoint, after: Checkpoint, fetch: str) -> ModelPair:
    trust = options.trust_remote_code
    pairing = pair_checkpoints(before, after)
    ours, theirs = (read_skeleton(each, trust_remote_code=trust) for each in (before, after))
    return ModelPair(before, after, pairing, ours, theirs, options.device, trust, fetch)


def candidate_names(options: OutputsOptions) -> tuple[str, ...]:
    """In the order of their turns."""
    ranks = [f"rank {rank}" for rank in options.ranks]
    return (
        *CONTROLS,
        BASE,
        *ranks,
        ANY_RANK,
        *options.adapter_names,
        *options.model_names,
        *options.yardsticks,
    )


def _of_tokenizers(models: ModelPair, tokenizer: Tokenizer) -> Iterator[str]:
    """How the base's tokenizer differs: the finetune's is used for all."""
    try:
        other = load_tokenizer(models.base_skeleton.folder, trust_remote_code=models.trust_remote_code)
    except CheckpointError:
        yield "the base has no tokenizer beside it; the finetune's is used for all"
        return
    if (how := describe_difference(tokenizer, other)) is not None:
        yield f"the base's tokenizer differs: {how}; the finetune's is used for all"
    rows = models.base_skeleton.vocabulary, models.skeleton.vocabulary
    if rows[0] != rows[1]:
        yield (
            f"the vocabularies differ: {rows[0]:,} tokens in the base, {rows[1]:,} in the finetune; what both have is "
            "compared"
        )


def _looked_at(options: OutputsOptions, tokenizer: Tokenizer, fetch: str) -> tuple[dict[str, str], list[str]]:
    """Hashes of everything that was given, and notes; what cannot be meant is refused before an hour is spent."""
    for name in options.yardsticks:
        get_yardstick(name)
    given = {"texts": content_of(options.texts), "prompts": content_of([options.prompts] if options.prompts else [])}
    notes: list[str] = []
    for folder in options.adapters:
        with open_adapter(folder) as lora:
            given[folder] = lora.file.fingerprint + content_of([str(Path(folder) / CONFIG_FILE)])
    for ref in options.models:
        with open_checkpoint(ref, fetch=fetch) as other:
            given[ref] = other.fingerprint
            notes += _of_model(ref, other, tokenizer, options.trust_remote_code)
    return given, notes


def _of_model(ref: str, other: Checkpoint, tokenizer: Tokenizer, trust: bool) -> Iterator[str]:
    """Raises UsageError (slug "tokenizers-differ") for a model that gives tokens of the finetune other ids."""
    try:
        theirs = load_tokenizer(ModelFolder.of_checkpoint(other), trust_remote_code=trust)
    except CheckpointError:
        yield f"{ref} has no tokenizer beside it; the finetune's is used"
        return
    if changed := changed_token_ids(tokenizer, theirs):
        raise UsageError(
            f"{ref!a} has a different tokenizer: {len(changed):,} tokens have another id than in the finetune's, "
            f"such as {changed[0]!a}.",
            cure="Compare models with the same tokenizer: they are compared token by token.",
            slug="tokenizers-differ",
        )
    if (how := describe_difference(tokenizer, theirs)) is not None:
        yield f"the tokenizer of {ref} differs: {how}; the finetune's is used"


def _refuse_streamed_answers(plan: OutputsPlan) -> None:
    raise UsageError(
        f"the models do not fit into memory whole ({plan.figures}), and streamed, each written token would read a "
        "whole checkpoint.",
        cure="Use --samples 0 and --text FILE (answers of the finetune that a server wrote make a good text), or "
        "--dtype bfloat16, or a machine with more memory.",
        slug="cannot-write-streamed",
    )
