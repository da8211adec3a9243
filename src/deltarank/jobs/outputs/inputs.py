"""What a job reads beside the two checkpoints: texts, prompts, tokenizers, adapters and other models.

All of it is checked here, so that a mistake is found before hours are spent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltarank.adapters import CONFIG_FILE, open_adapter
from deltarank.checkpoints import Checkpoint, open_checkpoint
from deltarank.divergence import (
    LONGEST_DOCUMENT,
    Document,
    Prompt,
    Tokenizer,
    encode_prompts,
    hash_texts,
    prompts_that_fit,
    read_prompts,
    read_texts,
)
from deltarank.errors import CheckpointError, UsageError
from deltarank.jobs.outputs.model_pair import ModelPair
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.jobs.outputs.quick import quick_documents, quick_prompts
from deltarank.models import (
    ModelFolder,
    base_tokenizer_notes,
    changed_token_ids,
    describe_difference,
    get_yardstick,
    load_tokenizer,
    load_tokenizer_of,
)


@dataclass(frozen=True)
class OutputsInputs:
    """The inputs of a job.

    tokenizer        the finetune's, which is used for all models
    texts            (name, documents) of each text
    fingerprints     hashes of the files, adapters and models, by "texts", "prompts" or the reference of the user
    notes            what the user should know of them
    """

    tokenizer: Tokenizer
    texts: Sequence[tuple[str, Sequence[Document]]]
    prompts: Sequence[Prompt]
    fingerprints: Mapping[str, str]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, models: ModelPair, options: OutputsOptions, *, fetch: str) -> OutputsInputs:
        """Reads the inputs and checks them.

        Args:
            fetch: how other models are fetched from the Hub.

        Raises:
            UsageError, JobError: an input does not exist, cannot be read, or does not fit the base or the finetune.
        """
        tokenizer = load_tokenizer_of(models.finetune_skeleton)
        for name in options.yardsticks:
            get_yardstick(name)
        notes = [*base_tokenizer_notes(models.base_skeleton, models.finetune_skeleton, tokenizer)]
        for folder in options.adapters:
            with open_adapter(folder) as lora:
                models.apply_adapter(lora, options.server)
        for ref in options.models:
            with open_checkpoint(ref, fetch=fetch) as checkpoint:
                notes += _model_notes(ref, checkpoint, tokenizer, options)
        length = min(LONGEST_DOCUMENT, models.context)
        texts = read_texts([Path(text) for text in options.texts], tokenizer, context=length)
        if options.quick:
            texts = [(name, quick_documents(documents)) for name, documents in texts]
        prompts, left_out = _read_prompts(options, tokenizer, models.context)
        return cls(tokenizer, texts, prompts, hash_inputs(options, fetch=fetch), (*notes, *left_out))


def hash_inputs(options: OutputsOptions, *, fetch: str) -> dict[str, str]:
    """Hashes of the files of texts and prompts, by these names, and of adapters and models by their references."""
    hashes = {
        "texts": hash_texts(options.texts),
        "prompts": hash_texts([options.prompts] if options.prompts else []),
    }
    for folder in options.adapters:
        with open_adapter(folder) as lora:
            hashes[folder] = lora.file.fingerprint + hash_texts([str(Path(lora.folder) / CONFIG_FILE)])
    for ref in options.models:
        with open_checkpoint(ref, fetch=fetch) as checkpoint:
            hashes[ref] = checkpoint.fingerprint
    return hashes


def _read_prompts(options: OutputsOptions, tokenizer: Tokenizer, context: int) -> tuple[list[Prompt], list[str]]:
    """The prompts, and a note of built-in ones that do not fit into a short context. The user's own must all fit."""
    if not options.samples:
        return [], []
    prompts = read_prompts(Path(options.prompts) if options.prompts else None)
    if options.quick:
        prompts = quick_prompts(prompts)
    limits = {"max_tokens": options.max_tokens, "context": context}
    fitting = prompts if options.prompts else prompts_that_fit(prompts, tokenizer, **limits)
    encode_prompts(fitting or prompts, tokenizer, **limits)
    if len(fitting) == len(prompts):
        return fitting, []
    note = (
        f"{len(prompts) - len(fitting)} of {len(prompts)} built-in prompts are left out: together with an answer of "
        f"{options.max_tokens:,} tokens they exceed the models' context of {context:,}"
    )
    return fitting, [note]


def _model_notes(ref: str, checkpoint: Checkpoint, tokenizer: Tokenizer, options: OutputsOptions) -> Iterator[str]:
    """Raises UsageError (slug "tokenizers-differ") for a model that gives tokens of the finetune other ids."""
    try:
        other = load_tokenizer(ModelFolder.of_checkpoint(checkpoint), trust_remote_code=options.trust_remote_code)
    except CheckpointError:
        yield f"{ref} has no tokenizer; the finetune's is used"
        return
    if changed := changed_token_ids(tokenizer, other):
        raise UsageError(
            f"{ref!a} has a different tokenizer: {len(changed):,} tokens have another id than in the finetune's, "
            f"such as {changed[0]!a}.",
            cure="Compare models with the same tokenizer: they are compared token by token.",
            slug="tokenizers-differ",
        )
    if (difference := describe_difference(tokenizer, other)) is not None:
        yield f"the tokenizer of {ref} differs: {difference}; the finetune's is used"
