"""An adapter as PEFT reads it: which of its tensors it loads, and on which modules of the base.

Where the class of the base is known, PEFT itself loads the adapter into that class on the meta device. Otherwise PEFT's
rules (0.21) are followed with the names in the base's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deltarank.adapters.class_names import ClassNames, FileNames
from deltarank.adapters.keys import PREFIX, StoredKey, is_second_key, parse_key, without_wrapper
from deltarank.adapters.parts import NEW_TENSOR, PartKind, UnusedTensor, group_tensors
from deltarank.adapters.peft_rules import names_fused_by_peft, why_ignored
from deltarank.adapters.read import LoraAdapter
from deltarank.adapters.reading import AdapterReading
from deltarank.architectures import PeftLoad, load_with_peft
from deltarank.checkpoints import Checkpoint, TensorInfo
from deltarank.tensor_names import EMBEDDING, LM_HEAD, kind_of_tensor

_VOCABULARY = frozenset({LM_HEAD, EMBEDDING})


def read_as_peft(adapter: LoraAdapter, base: Checkpoint) -> AdapterReading:
    """What PEFT loads of an adapter, from headers alone."""
    names, fused = ClassNames.of_adapter(base, adapter), names_fused_by_peft(base)
    if isinstance(names, str):
        note = (
            "it was not checked which keys PEFT loads, only that they are named as the tensors in the base's files: "
            f"{names}"
        )
        in_files = FileNames(base)
        return AdapterReading(_by_rules(adapter, in_files, fused), in_files, notes=(note,))
    if not adapter.config.is_safe_to_run:
        note = "PEFT itself was not asked which keys it loads: an expression of the configuration is too complex to run"
        return AdapterReading(_by_rules(adapter, names, fused), names, notes=(note,))
    load = load_with_peft(names.model_class, adapter.config.for_peft, _shapes(adapter, names))
    if load.refusal is not None:
        return AdapterReading(_by_rules(adapter, names, fused), names, refusal=load.refusal)
    return AdapterReading(_as_loaded(adapter, load, names, fused), names, is_exact=True, notes=names.notes)


def _shapes(adapter: LoraAdapter, names: ClassNames) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the file's tensors; a vocabulary that is longer than the base's as the base's, once resized."""
    return {key: _resized(key, info, names) for key, info in adapter.file.tensors.items()}


def _resized(key: str, info: TensorInfo, names: ClassNames) -> tuple[int, ...]:
    parsed = parse_key(without_wrapper(key))
    if parsed is None:
        return info.shape
    tensor = parsed.tensor if isinstance(parsed, StoredKey) else f"{parsed.module}.weight"
    known = names.model_class.parameters.get(tensor, ())
    if isinstance(parsed, StoredKey) and names.is_new(tensor) and len(known) == len(info.shape):
        return known  # a head for another number of labels
    if not len(known) == len(info.shape) == 2 or kind_of_tensor(tensor) not in _VOCABULARY:
        return info.shape
    rows, columns = info.shape
    if isinstance(parsed, StoredKey):
        return known if rows > known[0] and columns == known[1] else info.shape
    if parsed.is_embedding and parsed.is_down:
        return (rows, min(columns, known[0]))
    return (min(rows, known[0]), columns) if not (parsed.is_embedding or parsed.is_down) else info.shape


def _as_loaded(adapter: LoraAdapter, load: PeftLoad, names: ClassNames, fused: frozenset[str]) -> LoraAdapter:
    """The adapter with the parts that PEFT made."""
    tensors = adapter.file.tensors
    placed = [(_without_adapter_name(load.placed[key]), tensors[key]) for key in load.placed]
    merged = [(PREFIX + key.removeprefix(PREFIX), tensors[key]) for key in load.merged]
    parts, unused = group_tensors([*placed, *merged])
    left = [key for key in load.unused if not is_second_key(key, tensors)]
    ignored = [UnusedTensor(key, why_ignored(key, adapter.config, names.modules, fused)) for key in left]
    new = [part for part in parts if part.kind is PartKind.WHOLE and names.is_new(part.tensor)]
    heads = [UnusedTensor(part.up.name, NEW_TENSOR) for part in new]
    kept = tuple(part for part in parts if part not in new)
    return replace(adapter, parts=kept, unused=(*ignored, *unused, *heads))


def _without_adapter_name(parameter: str) -> str:
    """The key of a parameter of the PEFT model: "X.lora_A.default.weight" -> "base_model.model.X.lora_A.weight"."""
    before, _, after = parameter.rpartition(".default")
    return PREFIX + (before + after).replace(".modules_to_save.", ".")


def _by_rules(adapter: LoraAdapter, names: ClassNames | FileNames, fused: frozenset[str]) -> LoraAdapter:
    """The adapter with the parts that have keys of the form that PEFT reads."""
    kept = [part for part in adapter.parts if part.has_prefix and part.adapter_name in ("", "default")]
    dropped = [part for part in adapter.parts if part not in kept]
    config, modules = adapter.config, names.modules
    unused = [UnusedTensor(part.up.name, why_ignored(part.up.name, config, modules, fused)) for part in dropped]
    return replace(adapter, parts=tuple(kept), unused=(*adapter.unused, *unused))
