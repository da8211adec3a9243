"""LoRA adapters in PEFT's format: reading, applying and writing.

Which keys of an adapter count, PEFT itself says where the class of the base is known (`architectures`).

open_adapter(folder) -> LoraAdapter                  its configuration and header, read and checked; no tensor
apply_adapter(adapter, targets, ...) -> Applied      what it changes in two checkpoints, from headers alone
LoraUpdate(adapter, changes, ...).rows(...)          the values that it adds to a tensor, some rows at a time
open_finetune(ref, base, ...) -> Checkpoint          a finetune that may be an adapter on the base
write_weights(path, tensors), adapter_config(...)    the files of an extracted adapter
Budget                                               which shares of the change an adapter keeps and loses
"""

from __future__ import annotations

from deltarank.adapters.apply import SAVE_AGAIN, Applied, Change, NewBias, apply_adapter
from deltarank.adapters.as_checkpoint import is_adapted, low_rank_factors, open_finetune
from deltarank.adapters.budget import IF_INCLUDED, IS_HEAD_TOO, Budget, LeftOut, MatrixEnergies, OmittedTensor
from deltarank.adapters.config_read import LoraConfig
from deltarank.adapters.config_write import adapter_config
from deltarank.adapters.file_names import (
    BUDGET_PICTURE_FILE,
    CONFIG_FILE,
    METADATA_FILE,
    MODEL_CARD_FILE,
    WEIGHTS_FILE,
)
from deltarank.adapters.keys import (
    bias_key,
    exact_targets,
    factor_keys,
    implied_modules,
    is_module_path,
    leaf,
    module_path,
    module_type,
    whole_tensor_key,
)
from deltarank.adapters.parts import AdapterPart, LoadEffect, PartKind, UnusedTensor
from deltarank.adapters.read import LoraAdapter, open_adapter
from deltarank.adapters.targets import Placement
from deltarank.adapters.unloaded import Unloaded
from deltarank.adapters.update import LoraUpdate
from deltarank.adapters.write import (
    FillBuffer,
    StreamedTensor,
    fill_from_file,
    fill_from_files,
    fill_interleaved,
    own_copy,
    write_factors,
    write_json,
    write_weights,
)

__all__ = [
    "BUDGET_PICTURE_FILE",
    "CONFIG_FILE",
    "IF_INCLUDED",
    "IS_HEAD_TOO",
    "METADATA_FILE",
    "MODEL_CARD_FILE",
    "SAVE_AGAIN",
    "WEIGHTS_FILE",
    "AdapterPart",
    "Applied",
    "Budget",
    "Change",
    "FillBuffer",
    "LeftOut",
    "LoadEffect",
    "LoraAdapter",
    "LoraConfig",
    "LoraUpdate",
    "MatrixEnergies",
    "NewBias",
    "OmittedTensor",
    "PartKind",
    "Placement",
    "StreamedTensor",
    "Unloaded",
    "UnusedTensor",
    "adapter_config",
    "apply_adapter",
    "bias_key",
    "exact_targets",
    "factor_keys",
    "fill_from_file",
    "fill_from_files",
    "fill_interleaved",
    "implied_modules",
    "is_adapted",
    "is_module_path",
    "leaf",
    "low_rank_factors",
    "module_path",
    "module_type",
    "open_adapter",
    "open_finetune",
    "own_copy",
    "whole_tensor_key",
    "write_factors",
    "write_json",
    "write_weights",
]
