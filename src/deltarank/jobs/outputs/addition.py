"""Candidates that are added to finished outputs: which of them are new, and what must be equal."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from deltarank.jobs.outputs.inputs import OutputsInputs, hash_inputs
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.results import Outputs
from deltarank.runtime import differences

_BY_REFERENCE = ("adapters", "models")
_BY_NAME = ("ranks", "yardsticks")

_NOT_COMPARED = (*_BY_REFERENCE, *_BY_NAME, "batch", "trust_remote_code", "texts", "prompts")
"""Candidates; what no figure depends on; and paths of files, of which the contents are compared."""


@dataclass(frozen=True)
class Addition:
    """Finished outputs, and what is asked for in addition.

    asked     the options, of which those in `given` were chosen; the others are taken from the earlier outputs
    fetch     how other checkpoints are fetched from the Hub
    """

    earlier: Outputs
    asked: OutputsOptions
    given: Collection[str]
    fetch: str

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Of the earlier outputs; empty if their options are not known."""
        identity = self.earlier.settings.get("identity")
        settings = identity.get("settings") if isinstance(identity, dict) else None
        known = {field.name for field in fields(OutputsOptions)} - {"batch"}
        if not isinstance(identity, dict) or not isinstance(settings, dict) or settings.keys() != known:
            return {}
        return identity if isinstance(identity.get("given"), dict) and _are_options(settings) else {}

    @property
    def fingerprint(self) -> str:
        """Of the earlier outputs."""
        return hashlib.sha256(self.earlier.to_json().encode()).hexdigest()

    def options(self) -> OutputsOptions:
        """What to measure with: ranks and yardsticks of both, and of the adapters and models those that are new.

        Code that comes with a checkpoint runs only if it is asked for now.

        Raises:
            UsageError, CheckpointError, AdapterError: an adapter or a model cannot be read.
        """
        if not self.identity:
            return self.asked
        stored = self.identity["settings"]
        kept = {name: value for name, value in stored.items() if name not in {*self.given, "trust_remote_code"}}
        both = {name: (*stored[name], *self._asked_for(name)) for name in _BY_NAME}
        new = {name: tuple(self._new(name)) for name in _BY_REFERENCE}
        attribute = {} if self._asked_for("attribute") else {"attribute": stored["attribute"]}
        changes: dict[str, Any] = {**kept, **both, **new, **attribute}
        return replace(self.asked, **changes)

    def merged_options(self, measured: OutputsOptions) -> OutputsOptions:
        """Those of all candidates."""
        stored = self.identity["settings"]
        both: dict[str, Any] = {name: (*stored[name], *getattr(measured, name)) for name in _BY_REFERENCE}
        return replace(measured, **both)

    def merged_identity(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Of a job that measures all candidates, from that of the job that measures the new ones."""
        mine = {name: value for name, value in identity.items() if name in self.identity}
        settings = {**mine["settings"]}
        for name in _BY_REFERENCE:
            settings[name] = [*self.identity["settings"][name], *settings[name]]
        return {**mine, "settings": settings, "given": {**self.identity["given"], **mine["given"]}}

    def _asked_for(self, name: str) -> Any:
        return getattr(self.asked, name) if name in self.given else ()

    def _new(self, name: str) -> Iterator[str]:
        """Those that the earlier outputs do not have. One that has changed since is among the differences."""
        refs = {name: self._asked_for(name) for name in _BY_REFERENCE}
        hashes = hash_inputs(replace(self.asked, **refs), fetch=self.fetch)
        return (ref for ref in refs[name] if hashes[ref] not in self.identity["given"].values())

    def differences(self, identity: Mapping[str, Any], inputs: OutputsInputs) -> list[str]:
        """Why new figures could not be compared with the earlier ones, in words; empty if they can.

        Args:
            identity: of the job that measures the new candidates.
        """
        if not self.identity:
            return ["their options are not stored, or another version of deltarank measured them"]
        found = dict(self.identity)
        wanted = {name: value for name, value in identity.items() if name in found}
        shared = self.identity["given"].keys() & identity["given"]
        for part, names in (("settings", self._compared()), ("given", shared)):
            found[part], wanted[part] = ({name: each[part][name] for name in names} for each in (found, wanted))
        return differences(found, wanted) if found != wanted else [*self._other_tokens(inputs)]

    def _compared(self) -> set[str]:
        """Options. How a server applies adapters matters where there are any."""
        stored = self.identity["settings"]
        has_adapters = bool(stored["adapters"]) and bool(self._asked_for("adapters"))
        return {*stored} - {*_NOT_COMPARED, *([] if has_adapters else ["server"])}

    def _other_tokens(self, inputs: OutputsInputs) -> Iterator[str]:
        """Equal files are other tokens by another tokenizer."""
        earlier = [(text.name, text.documents, text.tokens) for text in self.earlier.texts if not text.own]
        now = [(name, len(texts), sum(each.scored_tokens for each in texts)) for name, texts in inputs.texts]
        if earlier != now:
            yield "the texts have other tokens"
        if {answer.prompt for answer in self.earlier.own_answers} != {*range(len(inputs.prompts))}:
            yield "the prompts, or the answers of the finetune are not stored"


def _are_options(settings: Mapping[str, Any]) -> bool:
    """Whether they have the types of options: a file of results may have been written by anybody."""
    try:
        OutputsOptions(**settings)
    except (TypeError, ValueError, AttributeError):
        return False
    return True
