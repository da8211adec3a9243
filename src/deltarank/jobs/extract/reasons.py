"""Why a tensor gets no factors, in the words that the user reads."""

from __future__ import annotations

from deltarank.servers import Handling, Server
from deltarank.tensor_names import kind_in_words

NOT_A_MATRIX = "not a matrix, so a LoRA cannot represent its change"
NOT_A_MODULE = "its name is not that of a module's weight, so no adapter can be applied to it"
TIED_TO_HEAD = "tied to the output head: an adapter that contains one of the two would untie them"
UNKNOWN_ROUTER = "a router, and how PEFT addresses it is not known for this model type"
UNKNOWN_EXPERT = "a single expert, and how PEFT addresses it is not known for this model type"
UNKNOWN_FUSED_EXPERT = (
    "one of several matrices in one tensor, and how PEFT addresses it is not known for this model type"
)


def omission_reason(kind: str, server: Server) -> str:
    """Why an adapter for this server does not contain a tensor of this kind."""
    if server.carries.get(kind) == "on request":
        return f"{kind_in_words(kind)}, which only some versions of {server.title} load: extracted if included by name"
    if kind == "bias" and server.bias is Handling.HONOURED:
        return f"a bias of a module without factors, which {server.title} cannot load"
    return f"{server.omission} {kind_in_words(kind)}"


def bias_beside_parameters(server: Server) -> str:
    return f"a bias, which {server.title} cannot load beside factors of parameters (experts)"


def incomplete_experts(server: Server) -> str:
    return f"{server.title} needs all experts or none, and some were left out or share a name with other modules"
