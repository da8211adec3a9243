"""The output head of a language model, where the two sides have different names for it."""

from __future__ import annotations

from collections.abc import Mapping

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.pairing.names import VocabularyRole, locate_all
from deltarank.checkpoints.pairing.one_vocabulary import predicts_tokens


def match_output_heads(
    base: Checkpoint, finetune: Checkpoint, names: Mapping[str, str]
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """{the finetune's name: the base's}, and a note. `embed_out` of GPT-NeoX is `lm_head` in transformers 5.

    Only where each side has one head, and both configurations name a class that predicts tokens.

    Args:
        names: the matches found so far, by the finetune's names.
    """
    if not (predicts_tokens(base) and predicts_tokens(finetune)):
        return {}, ()
    ours, theirs = _heads(base), _heads(finetune)
    if len(ours) != 1 or len(theirs) != 1 or theirs[0] in names or ours[0] in names.values():
        return {}, ()
    if base.tensors[ours[0]].shape[1:] != finetune.tensors[theirs[0]].shape[1:]:
        return {}, ()
    note = f"the output head is {quoted(ours[0])} in the base and {quoted(theirs[0])} in the finetune"
    return {theirs[0]: ours[0]}, (note,)


def _heads(checkpoint: Checkpoint) -> list[str]:
    located = locate_all(checkpoint.tensors)
    heads = [name for name, location in located.items() if location.vocabulary is VocabularyRole.HEAD]
    return [name for name in heads if name.endswith("weight") and len(checkpoint.tensors[name].shape) == 2]
