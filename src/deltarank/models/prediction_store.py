"""What is kept of the reference's predictions while candidates come and go: small files, each whole or absent."""

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
    """A folder of hidden states, a file a document, and the head that turns them into logits.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, number: int) -> bool:
        return self._file(number).is_file()

    def save(self, number: int, kept: Tensor) -> None:
        _save(self._file(number), {"kept": kept})

    def load(self, number: int) -> Tensor:
        kept: Tensor = load_file(self._file(number))["kept"]
        return kept

    @property
    def has_head(self) -> bool:
        return (self.folder / _HEAD).is_file()

    def save_head(self, head: Head) -> None:
        _save(self.folder / _HEAD, {k: v for k, v in (("weight", head.weight), ("bias", head.bias)) if v is not None})

    def load_head(self) -> Head:
        tensors = load_file(self.folder / _HEAD)
        return Head(tensors.get("weight"), tensors.get("bias"))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    whole = {name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}
    with write_atomically(path) as partial:
        try:
            save_file(whole, partial)
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error
