"""Folders and files of weights that deltarank does not read, recognised by their names, and what converts each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.weight_names import is_training_state
from deltarank.errors import CheckpointError

_TRANSFORMERS_CURE = (
    "Convert it: load it with transformers and call `save_pretrained(folder)`; or choose another revision of the model."
)


@dataclass(frozen=True)
class OtherFormat:
    """A format by its names.

    names        matches a whole file name, or a folder's name with a "/" at its end
    what         "a training checkpoint of DeepSpeed"
    """

    names: re.Pattern[str]
    what: str
    cure: str
    slug: str = "bad-format"


def _format(names: str, what: str, cure: str, slug: str = "bad-format") -> OtherFormat:
    return OtherFormat(re.compile(names, re.IGNORECASE), what, cure, slug)


_UNFINISHED = _format(
    r".*\.(?:incomplete|part|partial|crdownload|opdownload|download|aria2|tmp|filepart)",
    "a download that did not finish",
    "Finish the download: `hf download org/name --local-dir DIR` continues where it stopped.",
    "unfinished-download",
)

_PARALLEL = _format(
    r"consolidated\.(?!00)\d\d\.pth|model-rank-\d+-part-\d+\.safetensors|rank\d+\.safetensors|.*[-_]tp[-_]?\d+\.\w+",
    "model-parallel parts, each of which contains a slice of every matrix",
    "Convert it, for a Llama with `python -m transformers.models.llama.convert_llama_weights_to_hf`; or give the "
    "checkpoint as transformers saves it.",
    "model-parallel",
)

FORMATS: Sequence[OtherFormat] = (
    _format(
        r".*\.part\d+of\d+|.*\.gguf[-.](?:part[-_]?)?[a-z0-9]{1,2}|.*\.split[-_.]\w{1,3}",
        "pieces of a file that was cut",
        "Join them in their order: `cat NAME.part1of2 NAME.part2of2 > NAME`. Then give the whole file.",
    ),
    _UNFINISHED,
    _format(
        r"zero_to_fp32\.py|global_step\d+/|.*mp_rank_\d+_model_states\.pt|.*optim_states\.pt",
        "a training checkpoint of DeepSpeed",
        "Run `python zero_to_fp32.py . output` in the folder that contains that script, and give the folder `output`.",
        "training-checkpoint",
    ),
    _format(
        r"iter_\d{7}/|mp_rank_\d\d(?:_\d+)*/|latest_checkpointed_iteration\.txt|model_optim_rng\.pt|distrib_optim\.pt"
        r"|common\.pt",
        "a training checkpoint of Megatron",
        "Convert it with Megatron Bridge (`AutoBridge.export_ckpt`) or with the `tools/checkpoint` of Megatron-LM, and "
        "give the folder that it writes.",
        "training-checkpoint",
    ),
    _format(
        r".*\.nemo|model_weights/",
        "a checkpoint of NeMo",
        'Export it: `nemo.collections.llm.export_ckpt(path=..., target="hf", output_path=...)`, or NeMo\'s script '
        "`convert_..._nemo_to_hf.py` for a `.nemo` file.",
        "training-checkpoint",
    ),
    _format(
        r"model_world_size_\d+_rank_\d+\.pt",
        "a training checkpoint of verl, in one file for each GPU",
        "Merge it: `python -m verl.model_merger merge --backend fsdp --local_dir ACTOR --target_dir OUT`. Give OUT.",
        "training-checkpoint",
    ),
    _format(
        r".*\.distcp|pytorch_model_fsdp_\d+/|pytorch_model_fsdp_rank\d+.*\.bin",
        "a distributed checkpoint of torch (FSDP)",
        "Convert it: `python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR weights.pt`, or for one of "
        "accelerate `accelerate merge-weights DIR OUT`.",
        "training-checkpoint",
    ),
    _PARALLEL,
    _format(
        r".*\.h5|.*\.keras|.*\.ckpt.*\.(?:index|meta)|.*\.data-\d{5}-of-\d{5}|saved_model\.pb|.*\.tflite|.*\.ckpt-\d+.*",
        "a model of TensorFlow or Keras",
        _TRANSFORMERS_CURE,
    ),
    _format(
        r".*\.msgpack|manifest\.ocdbt|ocdbt\.process_\d+/|_checkpoint_metadata",
        "a model of Flax or JAX",
        _TRANSFORMERS_CURE,
    ),
    _format(r".*\.onnx(?:_data|\.data)?", "an ONNX model", "Give the checkpoint that it was exported from."),
    _format(
        r".*\.npz|.*\.npy",
        "arrays of numpy, as MLX once saved weights",
        "Convert it: `mlx_lm.convert` writes safetensors.",
    ),
    _format(
        r"openvino_model.*|.*\.engine|.*\.plan|.*\.mlpackage/?|.*\.mlmodelc?/?|.*\.pte|.*\.litertlm|.*\.task|rust_model\.ot"
        r"|params_shard_\d+\.bin|.*\.llamafile|ggml-.*\.bin|.*\.ggml",
        "a model compiled or converted for a runtime",
        "Give the checkpoint that it was made from.",
    ),
    _format(
        r".*\.(?:pkl|pickle|joblib)",
        "a pickle, which can run any program when it is loaded",
        "Convert it to safetensors on a machine that may run it.",
        "pickled-weights",
    ),
    _format(
        r".*\.(?:tar|tgz|zip|7z|gz|zst|bz2|xz|rar)",
        "an archive",
        "Unpack it, and give the folder of weights that was in it.",
    ),
)


_STATE = _format(
    "",
    "the state of a training run",
    "Give the folder that the trainer saved the model to, or the weights file in it.",
    "training-checkpoint",
)


def find_format(names: Iterable[str]) -> tuple[OtherFormat, str] | None:
    """The first format, in the order of `FORMATS`, that a name matches, and this name."""
    listed = list(names)
    return next(((known, name) for known in FORMATS for name in listed if known.names.fullmatch(_last(name))), None)


def is_other_format(name: str) -> bool:
    return find_format([name]) is not None


def unfinished(names: Iterable[str]) -> list[str]:
    """Names of downloads that did not finish."""
    return [name for name in names if _UNFINISHED.names.fullmatch(name)]


def refuse_parallel_parts(folder: Path | str, names: Iterable[str]) -> None:
    """Raises:
    CheckpointError: (slug "model-parallel") one of these files holds slices of matrices.
    """
    for name in names:
        if _PARALLEL.names.fullmatch(name):
            _refuse(f"{quoted(folder, max_length=300)} contains {_PARALLEL.what} ({quoted(name)})", _PARALLEL)


def refuse_folder_by_names(folder: Path | str, names: Sequence[str]) -> None:
    """Raises:
    CheckpointError: a name belongs to a format that is known and not read. Names may be relative paths.
    """
    shown = quoted(folder, max_length=300)
    found = find_format(names)
    if found is not None:
        known, name = found
        _refuse(f"{shown} contains {known.what} ({quoted(name)}), and no weights in a supported format", known)
    states = [name for name in names if is_training_state(_last(name))]
    if states:
        _refuse(f"{shown} contains the state of a training run ({quoted(states[0])}), but no weights", _STATE)


def refuse_file_by_name(path: Path) -> None:
    """As `refuse_folder_by_names`, for a file that the user names."""
    shown = quoted(path, max_length=300)
    found = find_format([path.name])
    if found is not None:
        _refuse(f"{shown} is not in a supported format ({found[0].what})", found[0])
    if is_training_state(path.name):
        _refuse(f"{shown} is a part of the state of a training run, not a model's weights", _STATE)


def _last(name: str) -> str:
    """The last part of a relative path; a folder's ends in "/"."""
    return name[name.rstrip("/").rfind("/") + 1 :]


def _refuse(message: str, known: OtherFormat) -> NoReturn:
    raise CheckpointError(f"{message}.", cure=known.cure, slug=known.slug)
