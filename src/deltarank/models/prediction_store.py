"""The reference's predictions on disk, while candidates are compared with them one after another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltarank.models.predict import Head
from deltarank.system import write_atomically

_HEAD = "head.safetensors"


class PredictionStore:
    """A folder with the inputs of the output head, one file per document, and the head that turns them into logits.

    Each file is written under another name and renamed, so that it is never incomplete.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, document: int) -> bool:
        return self._file(document).is_file()

    def save(self, document: int, head_inputs: Tensor) -> None:
        _save(self._file(document), {"head_inputs": head_inputs})

    def load(self, document: int) -> Tensor:
        head_inputs: Tensor = load_file(self._file(document))["head_inputs"]
        return head_inputs

    @property
    def has_head(self) -> bool:
        return (self.folder / _HEAD).is_file()

    def save_head(self, head: Head) -> None:
        tensors = {"weight": head.weight, "bias": head.bias}
        _save(self.folder / _HEAD, {name: each for name, each in tensors.items() if each is not None})

    def load_head(self) -> Head:
        tensors = load_file(self.folder / _HEAD)
        return Head(tensors.get("weight"), tensors.get("bias"))

    def _file(self, document: int) -> Path:
        return self.folder / f"{document:06}.safetensors"


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    whole = {name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}
    with write_atomically(path) as partial:
        try:
            save_file(whole, partial)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(str(error)) from error
