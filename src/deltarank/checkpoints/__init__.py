"""Checkpoints: references, headers, pairing, reading. The only room that knows files and the Hub.

open_checkpoint(ref) -> Checkpoint             headers read and checked, no tensor
pair_checkpoints(base, finetune) -> Pairing    the plan: pairs, summed, skipped, notes
chunks(pair.base, pair.finetune)               rows of both sides, through reused buffers
"""

from __future__ import annotations

from deltarank.checkpoints.checkpoint import Checkpoint, open_checkpoint
from deltarank.checkpoints.chunks import Lookahead, interrupt, read_chunks, rows_of, will_need
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.hub.adapter_folder import adapter_folder
from deltarank.checkpoints.hub.fetch import checked_way, fetch_small
from deltarank.checkpoints.hub.http_ranges import Traffic
from deltarank.checkpoints.pairing.fused_experts import as_expert
from deltarank.checkpoints.pairing.names import without_wrappers
from deltarank.checkpoints.pairing.pair import pair_checkpoints
from deltarank.checkpoints.pieces import PLAIN, Pair, Pairing, Piece, SummedTensor
from deltarank.checkpoints.source import LocalSource, Source

__all__ = [
    "PLAIN",
    "Checkpoint",
    "LocalSource",
    "Lookahead",
    "Pair",
    "Pairing",
    "Piece",
    "Source",
    "SummedTensor",
    "TensorInfo",
    "Traffic",
    "adapter_folder",
    "as_expert",
    "checked_way",
    "fetch_small",
    "interrupt",
    "open_checkpoint",
    "pair_checkpoints",
    "read_chunks",
    "rows_of",
    "will_need",
    "without_wrappers",
]
