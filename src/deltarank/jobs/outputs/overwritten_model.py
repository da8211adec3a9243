"""A loaded model whose tensors are overwritten by those of one candidate after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from deltarank.jobs.outputs.candidates import Candidate
from deltarank.jobs.outputs.loaded_model import LoadedModel
from deltarank.models import EditedWeights, Head, SharedLayers, Window


class OverwrittenModel(LoadedModel):
    """A loaded model that has the weights of another candidate while it predicts.

    Args:
        names: the name in the files for each tensor of the model.
        layer: the layer that the candidate changes, if it changes one alone: what the layers before it compute is
            taken from the pass for an earlier layer. The candidates of a model come in the order of their layers.
    """

    def __init__(
        self, candidate: Candidate, loaded: LoadedModel, names: Mapping[str, str], *, layer: int | None = None
    ) -> None:
        super().__init__(candidate, loaded.loader)
        self._loaded, self._names, self._layer = loaded, names, layer

    def predict(self, windows: Sequence[Window]) -> tuple[list[Tensor], Head]:
        passes = self._shortened(windows)
        with self._overwritten(), passes:
            return self._loaded.predict(windows)

    def _shortened(self, windows: Sequence[Window]) -> AbstractContextManager[None]:
        """Passes from the changed layer on; whole ones where the model does not allow that."""
        shared = None if self._layer is None else self._loaded.shared_layers(windows)
        if shared is None or self._layer is None or not self._is_in_layer(shared, self._layer):
            return nullcontext()
        shared.prepare(windows, self._layer)
        return shared.replayed(windows)

    def _is_in_layer(self, shared: SharedLayers, layer: int) -> bool:
        return all(shared.has(name, layer) for name in self._changed_tensors)

    @property
    def _changed_tensors(self) -> list[str]:
        """The tensors of the model that the candidate changes."""
        return [name for name, file_name in self._names.items() if file_name in self.candidate.weights.edits]

    @contextmanager
    def _overwritten(self) -> Iterator[None]:
        self._overwrite(self.candidate.weights)
        try:
            yield
        finally:
            self._overwrite(self._loaded.candidate.weights)

    @torch.no_grad()
    def _overwrite(self, weights: EditedWeights) -> None:
        """Copies the tensors that the candidate changes from `weights`."""
        state = self._loaded.model.state_dict()
        for name in self._changed_tensors:
            state[name].copy_(weights.tensor(self._names[name]))
