"""What servers do with a LoRA in PEFT's format: the rules of `servers.json`, dated and with their sources.

This room needs no torch, so that the command line can list the servers without loading it.
"""

from __future__ import annotations

from deltarank.servers.model_families import (
    ExpertLayout,
    file_router_name,
    is_conv1d_model,
    is_transposed,
    modules_fused_by_peft,
    peft_router_name,
)
from deltarank.servers.rules import (
    DEFAULT_SERVER,
    PEFT,
    Handling,
    Server,
    get_server,
    known_servers,
    rules_date,
    server_names,
)
from deltarank.servers.vllm_slots import SLOT_NUMBER_BYTES, slot_bytes, slot_numbers

__all__ = [
    "DEFAULT_SERVER",
    "PEFT",
    "SLOT_NUMBER_BYTES",
    "ExpertLayout",
    "Handling",
    "Server",
    "file_router_name",
    "get_server",
    "is_conv1d_model",
    "is_transposed",
    "known_servers",
    "modules_fused_by_peft",
    "peft_router_name",
    "rules_date",
    "server_names",
    "slot_bytes",
    "slot_numbers",
]
