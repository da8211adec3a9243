"""Language models: loaded from checkpoints, run and sampled. Only this room and the demo import transformers."""

from __future__ import annotations

from deltarank.models.generate import generate_answers
from deltarank.models.load import end_ids, load_model
from deltarank.models.predict import (
    LOGITS_PER_CHUNK,
    Head,
    Predictor,
    Window,
    batch_windows,
    translate_out_of_memory,
)
from deltarank.models.prediction_store import PredictionStore
from deltarank.models.product_inputs import InputSum, InputSums, WeightSlot, sum_inputs
from deltarank.models.quantise import YARDSTICKS, Yardstick, get_yardstick
from deltarank.models.recompute import largest_layer, recompute_layers
from deltarank.models.served_tokens import ServedTokens
from deltarank.models.shared_layers import SharedLayers
from deltarank.models.skeleton import AnyModel, ModelFolder, ModelSkeleton, read_skeleton
from deltarank.models.stream import file_tensor_names, stream_model
from deltarank.models.tokenizers import (
    base_tokenizer_notes,
    changed_token_ids,
    describe_difference,
    load_tokenizer,
    load_tokenizer_of,
)
from deltarank.models.weights import Edit, EditedWeights, read_piece

__all__ = [
    "LOGITS_PER_CHUNK",
    "YARDSTICKS",
    "AnyModel",
    "Edit",
    "EditedWeights",
    "Head",
    "InputSum",
    "InputSums",
    "ModelFolder",
    "ModelSkeleton",
    "PredictionStore",
    "Predictor",
    "ServedTokens",
    "SharedLayers",
    "WeightSlot",
    "Window",
    "Yardstick",
    "base_tokenizer_notes",
    "batch_windows",
    "changed_token_ids",
    "describe_difference",
    "end_ids",
    "file_tensor_names",
    "generate_answers",
    "get_yardstick",
    "largest_layer",
    "load_model",
    "load_tokenizer",
    "load_tokenizer_of",
    "read_piece",
    "read_skeleton",
    "recompute_layers",
    "stream_model",
    "sum_inputs",
    "translate_out_of_memory",
]
