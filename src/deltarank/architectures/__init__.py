"""What transformers' class of a checkpoint calls its modules and parameters, and what PEFT does with an adapter on it.

find_architecture(checkpoint) -> Architecture | UnknownClass  the class, and its names for the checkpoint's tensors
find_adapted_architecture(base, task, named, modules)         the same, of the class that an adapter was made for
find_loading_class(config) -> LoadingClass | UnknownClass     the class that loads a checkpoint, on the meta device
LoadingClass.load(shapes) -> LoadedTensors                    the class's parameters, made from a file's tensors
load_tensors(meta_model, shapes) -> LoadedTensors             the same for a model that was built already
load_with_peft(model_class, config, shapes) -> PeftLoad       what PEFT does with each tensor of an adapter

Names in files and in the class differ: transformers renames, merges and splits tensors while it loads them. Adapters
use the names of the class. No weights are read, and no code from a checkpoint is run. torch and transformers are
imported only when a class is built.
"""

from __future__ import annotations

from deltarank.architectures.adapter_class import find_adapted_architecture
from deltarank.architectures.architecture import Architecture, find_architecture
from deltarank.architectures.loaded_tensors import Conversion, LoadedTensors, load_tensors
from deltarank.architectures.loading_class import LoadingClass, UnknownClass, find_loading_class
from deltarank.architectures.peft_load import PeftLoad, load_with_peft, peft_version
from deltarank.architectures.transformers_logging import first_line, silence_transformers

__all__ = [
    "Architecture",
    "Conversion",
    "LoadedTensors",
    "LoadingClass",
    "PeftLoad",
    "UnknownClass",
    "find_adapted_architecture",
    "find_architecture",
    "find_loading_class",
    "first_line",
    "load_tensors",
    "load_with_peft",
    "peft_version",
    "silence_transformers",
]
