"""Which tensors of a checkpoint are decoded from which stored tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltarank.checkpoints.formats.decoded_source import Decoder
from deltarank.checkpoints.formats.safetensors_header import TensorInfo


@dataclass
class DecodingPlan:
    """What a format's finder recognised.

    decoders   by the name of the decoded tensor
    plain      stored tensors that are plain, under their new names (GGUF)
    used       names of the stored tensors that `decoders` and `plain` replace
    refused    stored tensors that cannot be decoded, with the reason
    """

    decoders: dict[str, Decoder] = field(default_factory=dict)
    plain: dict[str, TensorInfo] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)

    def add_decoder(self, name: str, decoder: Decoder | None, stored: str, obstacle: str) -> None:
        """Decodes tensor `name`, or refuses the tensor `stored` because of the obstacle if there is no decoder."""
        if decoder is None:
            self.refused[stored] = obstacle
        else:
            self.decoders[name] = decoder
            self.used.update(part.name for part in decoder.parts)

    def add(self, other: DecodingPlan) -> None:
        """Adds another plan; where both decode a tensor, the other wins."""
        self.decoders.update(other.decoders)
        self.used |= other.used
        self.refused.update(other.refused)
