"""What a look at a checkpoint's names found: which tensors can be worked out from which."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltarank.checkpoints.formats.decoded_source import Decoder


@dataclass
class Found:
    """Decoders by the name of the plain tensor; the stored tensors used; what cannot be worked out, and why."""

    decoders: dict[str, Decoder] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """The other's on top of ours."""
        self.decoders.update(other.decoders)
        self.used |= other.used
        self.refused.update(other.refused)
