"""What the name of a tensor says of it: which kind of tensor it is, and which prefixes are wrappers of the model.

`compare`, `extract` and the rules of servers all ask here, so that they agree on which tensors are matrices of linear
layers. This room needs no torch.
"""

from __future__ import annotations

from deltarank.tensor_names.kinds import (
    BARE_PARAMETER,
    EMBEDDING,
    EXPERT,
    LM_HEAD,
    POSITION,
    ROUTER,
    kind_in_words,
    kind_of_tensor,
)
from deltarank.tensor_names.wrappers import (
    BASE_MODEL_PREFIXES,
    INNER_WRAPPERS,
    WRAPPERS,
    strip_inner_wrappers,
    strip_wrappers,
    wrapper_count,
)

__all__ = [
    "BARE_PARAMETER",
    "BASE_MODEL_PREFIXES",
    "EMBEDDING",
    "EXPERT",
    "INNER_WRAPPERS",
    "LM_HEAD",
    "POSITION",
    "ROUTER",
    "WRAPPERS",
    "kind_in_words",
    "kind_of_tensor",
    "strip_inner_wrappers",
    "strip_wrappers",
    "wrapper_count",
]
