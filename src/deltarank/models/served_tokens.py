"""A tokenizer as seen through a server: the texts of its tokens as servers write them, and prompts with BOS tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from deltarank.divergence import Tokenizer

_WORD_START = "\u2581"
"""What tokenizers of SentencePiece have in place of a space."""


class ServedTokens:
    """The tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def prompt_ids(self, prompt: str, shift: int = 0) -> list[int]:
        """With the special tokens that the tokenizer adds, and one more or one less in front for a shift of 1 or -1."""
        ids = list(self.tokenizer(prompt, verbose=False)["input_ids"])
        if shift == 1 and self.bos is not None:
            return [self.bos, *ids]
        return ids[1:] if shift == -1 else ids

    def bos_shift(self, ids: Sequence[int], difference: int) -> int:
        """`difference`, a server's count of tokens less that of `ids`, if a BOS token explains it; else 0."""
        has_bos = self.bos is not None and list(ids[:1]) == [self.bos]
        is_explained = (difference == 1 and self.bos is not None and not has_bos) or (difference == -1 and has_bos)
        return difference if is_explained else 0

    @property
    def bos(self) -> int | None:
        found = getattr(self.tokenizer, "bos_token_id", None)
        return found if isinstance(found, int) else None

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

    def on_list(self, row: Tensor, listed: Mapping[str, float]) -> Iterator[tuple[str, float]]:
        """What a model gives the tokens that a server lists.

        Args:
            row: the model's log-probabilities, (vocabulary,).
        """
        for text in listed:
            ids = [number for number in self.ids_by_text.get(text, ()) if number < len(row)]
            if ids:
                yield text, max(float(torch.logsumexp(row[ids], 0)), -1e3)


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
