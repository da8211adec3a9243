"""What a model does on a calibration text: the text, cut to a number of tokens, and the inputs of its matrices.

read_documents(...) -> CalibrationDocuments    whole documents, chosen with a fixed seed
RunnableModel.open(checkpoint, ...)              a checkpoint as a model, and the places of its matrices in it
RunnableModel.load() -> RunningModel              with its weights
RunningModel.inputs(pairs, text)                  the inputs of some matrices, as sums of x x', from one pass
"""

from __future__ import annotations

from deltarank.activations.documents import CalibrationDocuments, read_documents
from deltarank.activations.matrix_places import MatrixPlaces
from deltarank.activations.runnable_model import MatrixInputs, RunnableModel, RunningModel

__all__ = [
    "CalibrationDocuments",
    "MatrixInputs",
    "MatrixPlaces",
    "RunnableModel",
    "RunningModel",
    "read_documents",
]
