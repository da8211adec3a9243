"""A model of the zoo in llama.cpp, beside the same model in transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llama_cpp import Answer, LlamaCpp, differ_by
from model_zoo import Family, prompts, write_family
from torch import Tensor
from transformers_reference import log_probabilities

PROMPTS = list(prompts())


@dataclass(frozen=True)
class ServedFamily:
    """The models on disk, the base as a GGUF file, and what both programs predict with the base alone."""

    family: Family
    llama_cpp: LlamaCpp
    gguf: Path
    reference: Tensor
    server: Tensor

    @classmethod
    def make(cls, name: str, folder: Path, llama_cpp: LlamaCpp) -> Self:
        family, gguf = write_family(name, folder), folder / "base.gguf"
        converted = llama_cpp.convert_model(family.base, gguf)
        assert not converted.failed, converted.log
        answer = llama_cpp.log_probabilities(gguf, PROMPTS, family.vocabulary)
        assert not answer.failed, answer.log
        return cls(family, llama_cpp, gguf, log_probabilities(family.base, PROMPTS), answer.value)

    @property
    def tolerance(self) -> float:
        """Five times by how much the server differs from transformers without an adapter, and float32's rounding."""
        return 5 * differ_by(self.server, self.reference) + 1e-5

    def predict(self, adapter: Path) -> Answer:
        """What llama.cpp predicts with an adapter in PEFT's format; failed where the conversion or the server fails."""
        converted = self.llama_cpp.convert_adapter(adapter, self.family.base, adapter.with_suffix(".gguf"))
        if converted.failed:
            return converted
        return self.llama_cpp.log_probabilities(
            self.gguf, PROMPTS, self.family.vocabulary, adapter.with_suffix(".gguf")
        )

    def expect(self, adapter: Path) -> Tensor:
        """What transformers predicts with the adapter, as PEFT loads it."""
        return log_probabilities(self.family.base, PROMPTS, adapter)


Served = Callable[[str], ServedFamily]
"""A model of the zoo by its name."""
