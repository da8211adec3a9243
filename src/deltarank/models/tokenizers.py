"""Tokenizers: loaded from a checkpoint's folder, and compared by the ids of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from deltarank.architectures import first_line, silence_transformers
from deltarank.checkpoints import refuse_pointer
from deltarank.divergence import Tokenizer
from deltarank.errors import CheckpointError
from deltarank.models.skeleton import FOLDER_CURE, ModelFolder, ModelSkeleton
from deltarank.results import count, listing

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
_POINTER_BYTES = 1024

_AutoTokenizer: Any = AutoTokenizer  # untyped


def load_tokenizer(folder: ModelFolder, *, trust_remote_code: bool = False) -> Tokenizer:
    """Raises CheckpointError (slug "no-tokenizer") if there is none, or it cannot be read."""
    try:
        with silence_transformers():
            return _AutoTokenizer.from_pretrained(
                folder.name_or_path, trust_remote_code=trust_remote_code, **folder.options
            )
    except Exception as error:  # tokenizers, sentencepiece and their converters raise many kinds
        _refuse_pointers(folder)
        raise CheckpointError(
            f"Cannot read a tokenizer from {folder.name_or_path!a}: {first_line(error)}",
            cure=FOLDER_CURE,
            slug="no-tokenizer",
        ) from error


def load_tokenizer_of(skeleton: ModelSkeleton) -> Tokenizer:
    """The tokenizer of a model: its own, or for an adapter without one that of its base. Errors as `load_tokenizer`."""
    trust = skeleton.trust_remote_code
    try:
        return load_tokenizer(skeleton.own_folder, trust_remote_code=trust)
    except CheckpointError:
        if skeleton.folder == skeleton.own_folder:
            raise
        return load_tokenizer(skeleton.folder, trust_remote_code=trust)


def _refuse_pointers(folder: ModelFolder) -> None:
    """Raises HeaderError (slug "lfs-pointer") if a file of the tokenizer is a Git LFS pointer."""
    for name in _TOKENIZER_FILES:
        path = Path(folder.name_or_path) / name
        if path.is_file():
            with path.open("rb") as file:
                refuse_pointer(file.read(_POINTER_BYTES), path)


def changed_token_ids(reference: Tokenizer, other: Tokenizer) -> list[str]:
    """The tokens of both vocabularies that have different ids in them: the same ids are another text to the other."""
    reference_ids, other_ids = reference.get_vocab(), other.get_vocab()
    return sorted(token for token, number in reference_ids.items() if other_ids.get(token, number) != number)


def describe_difference(finetune: Tokenizer, other: Tokenizer) -> str | None:
    """How another model's tokenizer differs from the finetune's, in words; None if it does not."""
    ours, theirs = finetune.get_vocab().keys(), other.get_vocab().keys()
    differences = [
        f"{count(len(tokens), 'token')} {how} (such as {_examples(tokens)})"
        for tokens, how in (
            (changed_token_ids(finetune, other), "with a different id"),
            (sorted(ours - theirs), "only in the finetune's"),
            (sorted(theirs - ours), "not in the finetune's"),
        )
        if tokens
    ]
    if not differences and getattr(finetune, "chat_template", None) != getattr(other, "chat_template", None):
        differences = ["it has a different chat template"]
    return listing(differences) if differences else None


def base_tokenizer_notes(base: ModelSkeleton, finetune: ModelSkeleton, tokenizer: Tokenizer) -> Iterator[str]:
    """How the base's tokenizer and vocabulary differ from the finetune's, whose tokenizer is used for both."""
    try:
        other = load_tokenizer_of(base)
    except CheckpointError:
        yield "the base has no tokenizer; the finetune's is used for all models"
        return
    if (difference := describe_difference(tokenizer, other)) is not None:
        yield f"the base's tokenizer differs: {difference}; the finetune's is used for all models"
    if base.vocabulary != finetune.vocabulary:
        yield (
            f"the vocabularies differ: {base.vocabulary:,} tokens in the base, {finetune.vocabulary:,} in the "
            "finetune; only the tokens that both have are compared"
        )


def _examples(tokens: list[str]) -> str:
    return listing([ascii(token)[:40] for token in tokens], most=2)
