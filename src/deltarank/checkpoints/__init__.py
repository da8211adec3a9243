"""Checkpoints: references, headers, pairing, reading. The only room that knows files and the Hub.

open_checkpoint(ref) -> Checkpoint             headers read and checked, no tensor
pair_checkpoints(base, finetune) -> Pairing    the plan: pairs, leftovers, skipped, notes
chunks(pair.base, pair.finetune)               rows of both sides, through reused buffers
"""

from deltarank.checkpoints._adapters import adapter_folder
from deltarank.checkpoints._checkpoint import Checkpoint, open_checkpoint
from deltarank.checkpoints._chunks import Lookahead, chunks, interrupt, rows_of, will_need
from deltarank.checkpoints._fetch import checked_way, fetch_small
from deltarank.checkpoints._fused import as_expert
from deltarank.checkpoints._headers import TensorInfo
from deltarank.checkpoints._names import without_wrappers
from deltarank.checkpoints._pairing import pair_checkpoints
from deltarank.checkpoints._pieces import PLAIN, Leftover, Pair, Pairing, Piece
from deltarank.checkpoints._remote import Traffic
from deltarank.checkpoints._source import LocalSource, Source

__all__ = [
    "PLAIN",
    "Checkpoint",
    "Leftover",
    "LocalSource",
    "Lookahead",
    "Pair",
    "Pairing",
    "Piece",
    "Source",
    "TensorInfo",
    "Traffic",
    "adapter_folder",
    "as_expert",
    "checked_way",
    "chunks",
    "fetch_small",
    "interrupt",
    "open_checkpoint",
    "pair_checkpoints",
    "rows_of",
    "will_need",
    "without_wrappers",
]
