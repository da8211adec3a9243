"""How it is known what a server does: it was run, or its source was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Evidence:
    """Where the rules of one server come from.

    name       of the server: "vLLM"
    version    the version that was run or read; "" for the rules of several servers
    run        the day on which it was run: "2026-11-28"; "" if it was not
    read       when its source was read: "2026-11"
    only_read  which of the rules were read and not run; "" for none
    """

    name: str
    version: str
    run: str
    read: str
    only_read: str

    @classmethod
    def from_rules(cls, rules: Mapping[str, Any]) -> Self:
        version, run = rules.get("version", ""), rules.get("run", "")
        return cls(
            rules.get("product", rules["title"]), version, run, rules.get("read", ""), rules.get("only_read", "")
        )

    @property
    def sentence(self) -> str:
        """Without a full stop, for notes."""
        if not self.version:
            return (
                "the rules of vLLM, SGLang, LoRAX, llama.cpp and PEFT hold at once; some of these servers were run, "
                "of the others only the source was read"
            )
        named = f"the rules of {self.name} {self.version}"
        if not self.run:
            return f"{named} were only read from its source ({self.read}); it was not run"
        exception = f"; only read from its source: {self.only_read}" if self.only_read else ""
        return f"{named} were found by running it ({self.run}){exception}"
