"""Why a tensor gets no factors, in the words that the user reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deltarank.adapters import IF_INCLUDED
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


def not_a_parameter(class_name: str) -> str:
    return f"{class_name} of transformers has no such parameter, so no adapter can be applied to it"


def part_of_a_parameter(class_name: str) -> str:
    return f"{class_name} of transformers splits it or merges it with other tensors, which its adapters do not do"


def refused_by_peft(version: str, refusal: str | None) -> str:
    """
    Args:
        refusal: the error; None if PEFT ignores factors of such a module, or finds another module in its place.
    """
    if refusal is None:
        return f"PEFT {version} does not apply factors to such a module of this model"
    sentence = re.sub(r"^\w+: (\[.*?\] )?", "", refusal).split(". ")[0]
    return f"PEFT {version} refuses factors there: {sentence}"


def not_whole_in_peft(version: str, refusal: str | None) -> str:
    """
    Args:
        refusal: the error; None if PEFT ignores such a module among `modules_to_save`.
    """
    return f"PEFT {version} does not load such a module whole" + (f" ({refusal})" if refusal else "")


def omission_reason(kind: str, server: Server) -> str:
    """Why an adapter for this server does not contain a tensor of this kind."""
    if server.carries.get(kind) == "on request":
        return f"{kind_in_words(kind)}, which only some versions of {server.title} load: {IF_INCLUDED}"
    if kind == "bias" and server.bias is Handling.HONOURED:
        return f"a bias of a module without factors, which {server.title} cannot load"
    return f"{server.omission} {kind_in_words(kind)}"


def head_refusal(config: Mapping[str, Any], server: Server) -> str | None:
    """Why the server loads no LoRA on the output head of this model; None if it does."""
    if config.get("tie_word_embeddings") is True and not server.is_peft:
        return f"the base ties it to its embedding, and {server.title} loads no LoRA on it"
    return f"{server.title} loads no LoRA on the lm_head of this model type" if server.refuses_head(config) else None


def unknown_module(name: str, server: Server) -> str:
    return f"{server.omission} modules of the name {name}"


def bias_beside_parameters(server: Server) -> str:
    return f"a bias, which {server.title} cannot load beside factors of parameters (experts)"


def incomplete_experts(server: Server) -> str:
    return f"{server.title} needs all experts or none, and some were left out or share a name with other modules"
