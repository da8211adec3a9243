"""What `outputs` was asked for, checked before anything is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deltarank.errors import UsageError
from deltarank.results import listing
from deltarank.runtime import SolverOptions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
AGAIN, WHOLE, BASE, ANY_RANK, FINETUNE = "finetune again", "whole delta", "base", "any rank", "finetune"
CONTROLS = (AGAIN, WHOLE)
OURS = frozenset({*CONTROLS, BASE, ANY_RANK, FINETUNE, "q8_0", "q4_0", "nf4", "int8", "fp8"})
"""Names that candidates of ours have."""

UNITS = ("module", "layer", "matrix")
DEFAULT_RANKS = (16, 64, 256)

Ref = str | os.PathLike[str]


@dataclass(frozen=True)
class OutputsOptions:
    """Everything that moves a number. Two jobs with equal briefs on equal inputs end with equal numbers.

    settings         of the decomposition; its ranks are those of the candidates
    dtype            of the models; "auto" is float32 on a CPU, else the type that most of the finetune is stored in
    batch            documents in one pass; None: as many as the plan thinks fit
    attribute        a unit: its parts are brought to rank r one at a time
    """

    settings: SolverOptions
    adapters: tuple[str, ...]
    server: str | None
    models: tuple[str, ...]
    yardsticks: tuple[str, ...]
    texts: tuple[str, ...]
    prompts: str | None
    attribute: str | None
    samples: int
    max_tokens: int
    seed: int
    dtype: str
    batch: int | None
    trust_remote_code: bool

    @classmethod
    def checked(
        cls,
        *,
        ranks: Sequence[int],
        adapters: Sequence[Ref],
        server: str | None,
        models: Sequence[Ref],
        yardsticks: Sequence[str],
        texts: Sequence[Ref],
        prompts: Ref | None,
        attribute: str | None,
        samples: int,
        max_tokens: int,
        seed: int,
        device: str,
        dtype: str,
        batch: int | None,
        trust_remote_code: bool,
    ) -> OutputsOptions:
        """Raises UsageError for what cannot be meant."""
        settings = SolverOptions(ranks=tuple(ranks), device=device)
        _check_choice("dtype", dtype, (AUTO, *DTYPES))
        if attribute is not None:
            _check_choice("unit", attribute, UNITS)
        for name, value, least in (("samples", samples, 0), ("max-tokens", max_tokens, 1), ("batch", batch, 1)):
            if value is not None and value < least:
                raise UsageError(
                    f"--{name}: {value} was asked for.", cure=f"Give a whole number from {least}.", slug="bad-number"
                )
        if samples == 0 and not texts:
            raise UsageError(
                "there is nothing to compare on: no text was given, and no answers are to be sampled.",
                cure="Give --text FILE, or --samples of at least 1.",
                slug="nothing-to-read",
            )
        return cls(
            settings=settings,
            adapters=_words(adapters),
            server=server,
            models=_words(models),
            yardsticks=tuple(dict.fromkeys(yardsticks)),
            texts=_words(texts),
            prompts=None if prompts is None else os.fspath(prompts),
            attribute=attribute,
            samples=samples,
            max_tokens=max_tokens,
            seed=seed,
            dtype=dtype,
            batch=batch,
            trust_remote_code=trust_remote_code,
        )

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.settings.ranks

    @property
    def device(self) -> torch.device:
        return self.settings.torch_device

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return _names_of(self.adapters, "adapter")

    @property
    def model_names(self) -> tuple[str, ...]:
        """One that an adapter has, too, gets its kind."""
        names = _names_of(self.models, "model")
        return tuple(f"model {name}" if name in self.adapter_names else name for name in names)

    def resolved(self, stored: torch.dtype) -> OutputsOptions:
        """With the dtype that is meant by "auto"."""
        if self.dtype != AUTO:
            return self
        on_cpu = self.device.type == "cpu" or stored not in DTYPES.values()
        return replace(self, dtype="float32" if on_cpu else str(stored).removeprefix("torch."))

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def to_plain(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "settings"}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        return {"ranks": list(self.ranks), "device": self.settings.device, **plain}


def content_of(paths: Sequence[str]) -> str:
    """A hash over what these files hold, and the files of these folders; a file that is not there counts as empty."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for file in files:
            data = file.read_bytes() if file.is_file() else b""
            digest.update(f"{file.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _names_of(refs: Sequence[str], kind: str) -> tuple[str, ...]:
    """The last word of each reference; of two that share it, the whole. A word that we use ourselves gets its kind."""
    short = [ref.rstrip("/").rsplit("/", 1)[-1] or ref for ref in refs]
    names = [ref if short.count(word) > 1 else word for ref, word in zip(refs, short, strict=True)]
    return tuple(f"{kind} {name}" if name in OURS or name.startswith("rank ") else name for name in names)


def _words(given: Sequence[Ref]) -> tuple[str, ...]:
    return tuple(os.fspath(each) for each in ([given] if isinstance(given, str | os.PathLike) else given))


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(
            f"{value!r} is not a {name}.", cure=f"Choose one of {listing(list(known))}.", slug=f"bad-{name}"
        )
