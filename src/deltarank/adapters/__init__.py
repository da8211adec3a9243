"""Adapters: the only room that knows PEFT's names, and what servers make of them. PEFT itself is never imported.

open_adapter(folder) -> LoraAdapter                configuration and header read and checked, no tensor
apply(adapter, targets, server=...) -> Applied what it changes, tensor by tensor, from headers alone
LoraUpdate(adapter, changes, ...)                  the numbers that it adds, some rows at a time
server(name) -> Server                        the rules of servers.json, dated and with sources
Budget                                        where the whole change went
exact_targets, factor_keys, write_weights ... how an adapter is written
"""

from __future__ import annotations

from deltarank.adapters.apply import Applied, Change, NewBias, apply_adapter
from deltarank.adapters.as_checkpoint import factors_of, is_adapted, open_finetune
from deltarank.adapters.budget import Budget, LeftOut, Spent
from deltarank.adapters.config_write import adapter_config
from deltarank.adapters.keys import bias_key, exact_targets, factor_keys, is_module, module_of, type_of, whole_key
from deltarank.adapters.read import Kind, LoadEffect, LoraAdapter, Part, UnusedTensor, open_adapter
from deltarank.adapters.server_semantics import semantics_of
from deltarank.adapters.targets import Placement
from deltarank.adapters.update import LoraUpdate
from deltarank.adapters.write import (
    ABOUT,
    CARD,
    CONFIG,
    PICTURE,
    WEIGHTS,
    Fill,
    Stored,
    end_to_end,
    factors_from,
    interleaved,
    write_factors,
    write_json,
    write_weights,
)

__all__ = [
    "ABOUT",
    "CARD",
    "CONFIG",
    "PICTURE",
    "WEIGHTS",
    "Applied",
    "Budget",
    "Change",
    "Fill",
    "Kind",
    "LeftOut",
    "LoadEffect",
    "LoraAdapter",
    "LoraUpdate",
    "NewBias",
    "Part",
    "Placement",
    "Spent",
    "Stored",
    "UnusedTensor",
    "adapter_config",
    "apply_adapter",
    "bias_key",
    "end_to_end",
    "exact_targets",
    "factor_keys",
    "factors_from",
    "factors_of",
    "interleaved",
    "is_adapted",
    "is_module",
    "module_of",
    "open_adapter",
    "open_finetune",
    "semantics_of",
    "type_of",
    "whole_key",
    "write_factors",
    "write_json",
    "write_weights",
]
