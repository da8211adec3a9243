"""The options of a calibration, checked before anything is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from deltarank.errors import UsageError
from deltarank.jobs.extract import ExtractKeywords, ExtractOptions
from deltarank.runtime import Ref, is_number
from deltarank.system import Default

OWN = "own"
"""In place of a path: the finetune's own answers to the built-in prompts."""

FEWEST_DOCUMENTS = 8
"""Under this, no part of the split has two documents."""

FEWEST_TOKENS = 1_000
"""Scored tokens, of all documents together."""


class CalibrateKeywords(ExtractKeywords, total=False):
    """The keywords of `deltarank.extract_calibrated`; `CalibrateOptions` says what they mean."""

    calibrate: Sequence[Ref]
    calibration_tokens: int
    steps: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(ExtractOptions):
    """Two calibrations with equal options on equal inputs, on as many threads, write equal adapters.

    calibrate           .txt, .md or .jsonl files or folders of them, or "own": the finetune's own answers
    calibration_tokens  about how many tokens are used of the texts, of all three parts together
    steps               of gradient descent at most; 0: plain extraction
    seed                of the split of the documents, their order, and the answers that are sampled

    The others are those of the plain extraction that it starts from, with a rank that is a number.

    Raises:
        UsageError: a value is not usable.
    """

    calibrate: tuple[str, ...] = (OWN,)
    calibration_tokens: int = Default.CALIBRATION_TOKENS
    steps: int = Default.CALIBRATION_STEPS
    seed: int = Default.SEED

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [self.calibrate] if isinstance(self.calibrate, str | os.PathLike) else self.calibrate
        object.__setattr__(self, "calibrate", tuple(dict.fromkeys(os.fspath(text) for text in given)))
        _check_number("steps", self.steps, least=0)
        _check_number("calibration-tokens", self.calibration_tokens, least=FEWEST_TOKENS)
        _check_number("seed", self.seed, least=0)
        if not self.calibrate:
            raise UsageError(
                "There is no text to calibrate on.",
                cure="Use --calibrate with a file, a folder, or the word own.",
                slug="text-not-found",
            )
        if self.fixed_rank is None:
            raise UsageError(
                "--calibrate needs a rank: --max-error is about the weights, which a calibrated adapter does not fit.",
                cure="Give a rank, such as --rank 16.",
                slug="bad-ranks",
            )

    @cached_property
    def plain(self) -> ExtractOptions:
        """The options of the plain extraction."""
        return ExtractOptions(**{field.name: getattr(self, field.name) for field in fields(ExtractOptions)})

    @property
    def calibration(self) -> dict[str, Any]:
        """The options that plain extraction does not have."""
        known = {field.name for field in fields(ExtractOptions)}
        return {name: value for name, value in self.to_plain().items() if name not in known}


def _check_number(option: str, value: int, *, least: int) -> None:
    if not is_number(value, whole=True) or value < least:
        raise UsageError(
            f"--{option} is {value}; the smallest value is {least:,}.",
            cure=f"Give a whole number of at least {least:,}.",
            slug="bad-number",
        )
