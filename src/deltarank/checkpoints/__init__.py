"""Checkpoints: opened from files or the Hub, paired, and read piece by piece. Only this room knows files and the Hub.

open_checkpoint(ref) -> Checkpoint                headers read and checked, but no tensor data
pair_checkpoints(base, finetune) -> Pairing       for every tensor: measured, summed or skipped; and notes
read_chunks(pair.base, pair.finetune)             rows of both sides, through reused buffers
"""

from __future__ import annotations

from deltarank.checkpoints.checkpoint import Checkpoint, open_checkpoint
from deltarank.checkpoints.chunks import Prefetcher, interrupt_reads, prefetch, read_chunks, read_rows, rows_of_chunk
from deltarank.checkpoints.escape import dimensions, quoted
from deltarank.checkpoints.file_contents import refuse_pointer
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.hub.fetch import check_fetch_mode, fetch_files, find_adapter_folder, is_adapter_file
from deltarank.checkpoints.hub.http_ranges import Traffic
from deltarank.checkpoints.hub.offline import hub_cache_only
from deltarank.checkpoints.named_bases import hub_id_of, hub_ids, may_be_one_model, other_base_note
from deltarank.checkpoints.pairing.fused_experts import parse_expert_name
from deltarank.checkpoints.pairing.one_vocabulary import with_one_vocabulary
from deltarank.checkpoints.pairing.pair import pair_checkpoints
from deltarank.checkpoints.pairing.result import Pairing
from deltarank.checkpoints.pieces import FLOAT_DTYPES, PLAIN_DTYPES, Pair, Piece, SummedTensor
from deltarank.checkpoints.shared_source import SharedSource
from deltarank.checkpoints.source import LocalSource, Source
from deltarank.checkpoints.subfolders import finetunes_in

__all__ = [
    "FLOAT_DTYPES",
    "PLAIN_DTYPES",
    "Checkpoint",
    "LocalSource",
    "Pair",
    "Pairing",
    "Piece",
    "Prefetcher",
    "SharedSource",
    "Source",
    "SummedTensor",
    "TensorInfo",
    "Traffic",
    "check_fetch_mode",
    "dimensions",
    "fetch_files",
    "find_adapter_folder",
    "finetunes_in",
    "hub_cache_only",
    "hub_id_of",
    "hub_ids",
    "interrupt_reads",
    "is_adapter_file",
    "may_be_one_model",
    "open_checkpoint",
    "other_base_note",
    "pair_checkpoints",
    "parse_expert_name",
    "prefetch",
    "quoted",
    "read_chunks",
    "read_rows",
    "refuse_pointer",
    "rows_of_chunk",
    "with_one_vocabulary",
]
