"""Models of any size: the weights of a layer are made when the layer runs, and dropped after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from deltarank.architectures import load_tensors, silence_transformers
from deltarank.errors import JobError
from deltarank.models.load import prepare_for_inference
from deltarank.models.predict import Head
from deltarank.models.skeleton import AnyModel, AutoModelForCausalLM, ModelSkeleton
from deltarank.models.weights import EditedWeights
from deltarank.results import listing


class StreamedStateDict(Mapping[str, Tensor]):
    """A model's tensors by their names in the model, each made anew whenever it is asked for.

    Args:
        keeps: whether the tensors stay in memory as they are stored, so that each is read once.

    Raises:
        JobError: (slug "cannot-stream") a tensor of the model is put together from several tensors of the files.
    """

    def __init__(
        self, skeleton: ModelSkeleton, weights: EditedWeights, dtype: torch.dtype, *, keeps: bool = False
    ) -> None:
        self._weights, self.dtype, self._keeps = weights, dtype, keeps
        self._kept: dict[str, Tensor] = {}
        self._names, missing = _match_names(skeleton, weights)
        if missing:
            raise JobError(
                f"{skeleton.folder.name_or_path!a} does not fit into memory and cannot be streamed: transformers "
                f"builds {listing([ascii(name) for name in missing], most=2)} from other tensors (fused experts, new "
                "names).",
                cure="Use a machine with more memory, or --dtype bfloat16.",
                slug="cannot-stream",
            )

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.stored(name)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def stored(self, name: str) -> Tensor:
        """The tensor in its stored dtype, or in float32 if it has edits."""
        source = self._names[name]
        if source in self._kept:
            return self._kept[source]
        with torch.inference_mode(False):  # no gradient passes a tensor of inference mode, and this one may be kept
            tensor = self._weights.tensor(source)
        if self._keeps:
            self._kept[source] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stream_model(
    skeleton: ModelSkeleton, weights: EditedWeights, *, dtype: torch.dtype, device: torch.device, keeps: bool = False
) -> tuple[AnyModel, Head]:
    """A model that holds no weights in `dtype`, and its output head, which the model does not hold either.

    It is slow, because every forward pass reads the whole checkpoint.

    Args:
        keeps: whether the weights stay in memory in the dtype in which they are stored: they are read once, and each
            pass only converts them.

    Raises:
        JobError: (slug "cannot-stream") a tensor of the model is put together from several tensors of the files.
    """
    from accelerate import cpu_offload, init_empty_weights

    tensors = StreamedStateDict(skeleton, weights, dtype, keeps=keeps)
    with silence_transformers(), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            skeleton.config, dtype=dtype, trust_remote_code=skeleton.trust_remote_code
        )
    for name, buffer in model.named_buffers():
        if name in tensors:
            buffer.copy_(tensors[name])
    model.tie_weights()
    offloaded = cpu_offload(model, execution_device=device, state_dict=tensors)
    return prepare_for_inference(offloaded, skeleton), _read_head(skeleton, tensors)


def _read_head(skeleton: ModelSkeleton, tensors: StreamedStateDict) -> Head:
    """In float32 the head computes the same from the stored dtype, which takes less memory."""
    head = skeleton.meta_model.get_output_embeddings()
    name = next((name for name, module in skeleton.meta_model.named_modules() if module is head), "")
    read = tensors.stored if tensors.dtype == torch.float32 else tensors.__getitem__
    return Head(*(read(each) if each in tensors else None for each in (f"{name}.weight", f"{name}.bias")))


def file_tensor_names(skeleton: ModelSkeleton, weights: EditedWeights) -> dict[str, str] | None:
    """The file's tensor name for each of the model's, if every tensor of the model is one of the file's; else None."""
    names, missing = _match_names(skeleton, weights)
    return None if missing else names


def _match_names(skeleton: ModelSkeleton, weights: EditedWeights) -> tuple[dict[str, str], list[str]]:
    """The file's tensor name for each of the model's, and the model's tensors that no single one of the file's is."""
    model = skeleton.meta_model
    loaded = load_tensors(model, {name: info.shape for name, info in weights.checkpoint.tensors.items()})
    stored = {parameter: name for name, parameter in loaded.renamed.items()}
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    found = {name: stored.get(name) or stored.get(tied.get(name, "")) for name in model.state_dict()}
    names = {name: match for name, match in found.items() if match is not None}
    return names, [name for name, match in found.items() if match is None]
