"""What the base, and the base with the adapter, predict after some prompts: all log-probabilities of the next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from deltarank.adapters import Applied, Change, LoraAdapter, LoraUpdate
from deltarank.checkpoints import Checkpoint
from deltarank.models import (
    Edit,
    EditedWeights,
    Predictor,
    Window,
    load_model,
    load_tokenizer_of,
    read_skeleton,
    stream_model,
    translate_out_of_memory,
)
from deltarank.runtime import available_memory

_BYTES_PER_WEIGHT = 4
_SHARE_OF_MEMORY = 0.5
"""A model that takes more than this of the memory is streamed from its files: once for all prompts."""

_WORD_START = "\u2581"
"""What tokenizers of SentencePiece have in place of a space."""


def adapter_edits(adapter: LoraAdapter, applied: Applied, device: torch.device) -> list[Edit]:
    """What turns the base's weights into those with the adapter.

    Raises:
        AdapterError: PEFT would not load it as it is.
    """
    applied.check_loads_in_peft()
    heads = {head.name: head for head in applied.untied}
    targets = {name: changes[0].placement.target for name, changes in applied.changes.items()} | heads
    return [
        Edit(
            target.base,
            partial(_add, adapter, applied.changes.get(name, ()), device),
            new_tensor=name if name in heads else None,
        )
        for name, target in targets.items()
    ]


def _add(adapter: LoraAdapter, changes: Sequence[Change], device: torch.device, base: Tensor) -> Tensor:
    """W0 plus what the adapter adds."""
    return base + LoraUpdate(adapter, changes, device=device, dtype=torch.float32).rows(0, base)


class LocalModels:
    """The base and the edits that make it base + adapter, and the base's tokenizer.

    Raises:
        CheckpointError, UsageError, JobError: the base cannot be run, or has no tokenizer.
    """

    def __init__(self, base: Checkpoint, edits: Sequence[Edit], device: torch.device) -> None:
        self._base, self._edits, self._device = base, edits, device
        self._skeleton = read_skeleton(base)
        self.tokenizer = load_tokenizer_of(self._skeleton)

    def token_ids(self, prompt: str, shift: int = 0) -> list[int]:
        """With the special tokens that the tokenizer adds, and one more or one less in front for a shift of 1 or -1."""
        ids = list(self.tokenizer(prompt)["input_ids"])
        bos = self.bos
        if shift == 1 and bos is not None:
            return [bos, *ids]
        return ids[1:] if shift == -1 else ids

    @property
    def bos(self) -> int | None:
        found = getattr(self.tokenizer, "bos_token_id", None)
        return found if isinstance(found, int) else None

    def predict(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the next token in float64, (texts, vocabulary): the base's, and base + adapter's."""
        return self._predict(texts, ()), self._predict(texts, self._edits)

    def _predict(self, texts: Sequence[Sequence[int]], edits: Sequence[Edit]) -> Tensor:
        weights, dtype, device = EditedWeights(self._base, edits, self._device), torch.float32, self._device
        head = None
        with translate_out_of_memory(device):
            if self._fits():
                model = load_model(self._skeleton, weights, dtype=dtype, device=device)
            else:
                model, head = stream_model(self._skeleton, weights, dtype=dtype, device=device)
        predictor = Predictor(model, device, head)
        inputs = predictor.head_inputs([Window(tuple(ids), (len(ids) - 1,)) for ids in texts])
        with torch.inference_mode():
            return torch.log_softmax(predictor.head.logits(torch.cat(inputs)).double(), -1).cpu()

    def _fits(self) -> bool:
        memory = available_memory(self._device)
        return memory is None or _BYTES_PER_WEIGHT * self._skeleton.parameters < _SHARE_OF_MEMORY * memory

    @cached_property
    def ids_by_text(self) -> Mapping[str, Sequence[int]]:
        """The ids of the tokens with each text, as servers write it; half a character is written by its bytes."""
        pieces: Mapping[str, int] = self.tokenizer.get_vocab()
        is_byte_level = any("\u0120" in piece for piece in pieces)
        found: dict[str, list[int]] = {}
        for piece, number in pieces.items():
            found.setdefault(_by_bytes(piece) if is_byte_level else _of_words(piece), []).append(number)
        return found

    @cached_property
    def text_by_id(self) -> Mapping[int, str]:
        return {number: text for text, numbers in self.ids_by_text.items() for number in numbers}


def _by_bytes(piece: str) -> str:
    """The text of a token of a byte-level tokenizer, as GPT-2's, in which each letter stands for a byte."""
    if any(letter not in _BYTES for letter in piece):
        return piece
    return bytes(_BYTES[letter] for letter in piece).decode("utf-8", "surrogateescape")


def _of_words(piece: str) -> str:
    """The text of a token of SentencePiece; <0x0A> is a byte."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)]).decode("utf-8", "surrogateescape")
    return piece.replace(_WORD_START, " ")


def _letters_of_bytes() -> Mapping[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for the letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _letters_of_bytes()
