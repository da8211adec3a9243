"""An adapter on disk: its configuration, its tensors grouped into parts, and their values on demand.

Any program may have written it. The keys of tensors are PEFT's:

    base_model.model.NAME.lora_A.weight            (r, inputs)       with lora_B.weight (outputs, r)
    base_model.model.NAME.lora_B.bias              (outputs,)        `lora_bias`
    base_model.model.NAME.lora_embedding_A         (r, rows)         with lora_embedding_B (columns, r)
    base_model.model.NAME.weight, .bias            as the model's    `modules_to_save`, `bias`
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Self

import torch
from torch import Tensor

from deltarank.adapters.config_read import MAX_CONFIG_SIZE, LoraConfig, parse_config, parse_object
from deltarank.adapters.file_names import CONFIG_FILE, METADATA_FILE, WEIGHTS_FILE
from deltarank.adapters.mlx import MLX_WEIGHTS, group_mlx_tensors, is_mlx_config, parse_mlx_config
from deltarank.adapters.other_formats import refuse_other_adapter
from deltarank.adapters.parts import FACTOR_DTYPES, AdapterPart, UnusedTensor, group_tensors
from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, TensorInfo, fetch_files, open_checkpoint
from deltarank.errors import AdapterError, CheckpointError
from deltarank.results import Reference, parse_hub_address
from deltarank.system import expand_home, nearest_path_in_words

_MAX_CACHED = 4
_MAX_BIAS_BYTES = 1 << 24
PEFT_WEIGHTS = (WEIGHTS_FILE, "adapter_model.bin")
_FILES = (CONFIG_FILE, *PEFT_WEIGHTS, *MLX_WEIGHTS)
_BIAS = ".lora_B.bias"


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA on disk. Close it, or use it in a `with`.

    folder, commit   the folder or Hub id that it was opened by; the commit of a Hub id
    is_mlx           mlx-lm wrote it, and PEFT and the servers do not read its files
    """

    config: LoraConfig
    parts: tuple[AdapterPart, ...]
    unused: tuple[UnusedTensor, ...]
    file: Checkpoint = field(repr=False)
    folder: str
    commit: str | None = None
    is_mlx: bool = False
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def reference(self) -> Reference:
        return Reference(self.folder, self.commit, dict(self.file.reference.files))

    @property
    def is_calibrated(self) -> bool:
        """Whether the deltarank.json beside it says that its factors were fitted to predictions. Unknown on the Hub."""
        try:
            metadata = json.loads((Path(self.folder).expanduser() / METADATA_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        calibration = metadata.get("calibration") if isinstance(metadata, dict) else None
        return isinstance(calibration, dict) and calibration.get("method") not in (None, "plain")

    def read(self, info: TensorInfo) -> Tensor:
        """A whole tensor of the file, as stored.

        Raises:
            CheckpointError: (slug "unreadable") the file was cut short, or cannot be read.
        """
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        if info.nbytes:
            self.file.source.read_into(info.file, info.start, raw.numpy().data)
        return raw.view(FACTOR_DTYPES[info.dtype]).view(info.shape)

    def is_padding(self, name: str) -> bool:
        """Whether a tensor is a bias of zeros: PEFT needs a bias beside all factors, if beside any."""
        info = self.file.tensors.get(name)
        if info is None or not name.endswith(_BIAS) or info.dtype not in FLOAT_DTYPES or info.nbytes > _MAX_BIAS_BYTES:
            return False
        return not self.read(info).any()

    def factors(self, part: AdapterPart) -> tuple[Tensor, Tensor]:
        """A and B of a LoRA as matrices, (r, inputs) and (outputs, r), in the dtypes that they are stored in.

        Those of an expert are slices of what all experts share. Kernels of a convolution are flattened.

        Raises:
            CheckpointError: as for `read`.
        """
        assert part.down is not None
        if part.expert is None:
            down, up = self.read(part.down).flatten(1), self.read(part.up).flatten(1)
            if part.is_turned:
                down, up = down.T, up.T
            return down, torch.nn.functional.pad(up, (0, 0, *part.padding)) if any(part.padding) else up
        index, experts = part.expert
        first = index * part.rank
        up = self._read_shared(part.up)[slice(*part.rows) if part.rows else slice(None), index::experts]
        return self._read_shared(part.down)[first : first + part.rank], up

    def _read_shared(self, info: TensorInfo) -> Tensor:
        """Experts come one after the other, so what they share is read once: the last few such tensors are cached."""
        tensor = self._cache.get(info.name)
        if tensor is None:
            tensor = self._cache[info.name] = self.read(info)
            for name in list(self._cache)[:-_MAX_CACHED]:
                self._cache.pop(name, None)
        return tensor


def open_adapter(
    ref: str | os.PathLike[str], *, revision: str | None = None, weights: str | None = None
) -> LoraAdapter:
    """Opens an adapter: reads its configuration and the header of its weights, but no tensor.

    Args:
        ref: a folder, or `org/name[@revision]` on the Hub, from which the two files are downloaded into the cache.
        weights: the file of the folder with the weights; None: the one that PEFT, or mlx-lm, loads.

    Raises:
        UsageError: a revision was given for a folder, or twice.
        AdapterError: there is no adapter, or it is of a kind that is not supported.
        CheckpointError, HeaderError: the weights cannot be read, or their header is invalid.
    """
    name = os.fspath(ref)
    try:
        home, commit = fetch_files(ref, (CONFIG_FILE, WEIGHTS_FILE), revision=revision)
        if not (home / WEIGHTS_FILE).is_file():  # on the Hub, others are downloaded only if they are needed
            home, commit = fetch_files(ref, _FILES, revision=revision)
    except CheckpointError as error:
        if error.slug == "no-such-checkpoint":
            _raise_not_found(name, "there is no such folder", near=nearest_path_in_words(expand_home(ref)))
        raise
    address = parse_hub_address(name) if commit else None
    name = address.repo_id if address else str(home)
    text = _read_config(home, name)
    is_mlx = is_mlx_config(parse_object(text))
    config = parse_mlx_config(parse_object(text)) if is_mlx else parse_config(text)
    known = MLX_WEIGHTS if is_mlx else PEFT_WEIGHTS
    file = open_checkpoint(home / _find_weights(home, name, (weights,) if weights else known))
    try:
        parts, unused = group_mlx_tensors(file.tensors.values()) if is_mlx else group_tensors(file.tensors.items())
        if not parts:
            refuse_other_adapter(file, has_config=True)
    except BaseException:
        file.close()
        raise
    return LoraAdapter(config, parts, unused, file, name, commit, is_mlx)


def _read_config(home: Path, name: str) -> bytes:
    try:
        with (home / CONFIG_FILE).open("rb") as file:
            return file.read(
                min(os.fstat(file.fileno()).st_size, MAX_CONFIG_SIZE) + 1
            )  # read() allocates what it is asked for
    except FileNotFoundError:
        _raise_not_found(name, f"it has no {CONFIG_FILE}")
    except OSError as error:
        _raise_not_found(name, f"{CONFIG_FILE} cannot be read ({error.strerror or error})")


def _find_weights(home: Path, name: str, files: Sequence[str]) -> str:
    """The first of these files that there is, which is the one that PEFT loads."""
    found = next((file for file in files if (home / file).is_file()), None)
    if found is None:
        _raise_not_found(name, f"it has no {files[0]}")
    return found


def _raise_not_found(name: str, reason: str, *, near: str = "") -> NoReturn:
    raise AdapterError(
        f"There is no adapter in {name!a}: {reason}.{near}",
        cure=f"Give a folder or Hub id with {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT's `save_pretrained` writes them.",
        slug="adapter-not-found",
    ) from None
