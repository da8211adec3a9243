"""What the user of an extracted adapter should know: doubtful inputs, and what PEFT or the server does with it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from deltarank.jobs.compare import UNRELATED, UnlikeMatrices
from deltarank.jobs.extract.contents import AdapterContents
from deltarank.jobs.extract.result import AdapterMatrix
from deltarank.results import listing, percent


def adapter_warnings(contents: AdapterContents, base_tensors: Collection[str]) -> Iterator[str]:
    """A sentence each.

    Args:
        base_tensors: the names of all tensors of the base.
    """
    failed = [matrix for matrix in contents.matrices.values() if matrix.written is None]
    if failed:
        names = listing([f"{matrix.name} ({matrix.reason})" for matrix in failed], most=3)
        yield f"matrices that could not be extracted stay as in the base: {names}"
    yield from _unrelated_base([matrix for matrix in contents.matrices.values() if matrix.written is not None])
    yield from contents.layout.notes
    server, rank = contents.layout.server, contents.layout.rank
    if server.rank_warning is not None and rank > server.rank_warning[0]:
        yield server.rank_warning[1]
    if contents.zero_modules:
        names = listing([zero.module for zero in contents.zero_modules], most=3)
        needs = "some servers need" if server.is_portable else f"{server.title} needs"
        yield f"{names} got zeros, which change nothing, because {needs} them beside the others"
    yield from _unmergeable_biases(contents, base_tensors)
    has_added_tokens = any(tensor.kind == "added tokens" for tensor in contents.layout.unfactored)
    if has_added_tokens and any(tensor.kind in ("embedding", "lm_head") for tensor in contents.whole_tensors):
        yield "the finetune has added tokens: call resize_token_embeddings on the base before loading the adapter"


def _unrelated_base(matrices: Sequence[AdapterMatrix]) -> Iterator[str]:
    energy = math.fsum(matrix.energy for matrix in matrices)
    base_energy = math.fsum(matrix.base_energy for matrix in matrices)
    if base_energy > 0 and (relative_norm := math.sqrt(energy / base_energy)) >= UNRELATED:
        yield (
            f"the delta is as large as {percent(relative_norm)} of the base's weights: is this the base that the "
            "finetune was trained from?"
        )
    elif (unlike := UnlikeMatrices.of(matrices)) is not None:
        yield f"the finetune can be compared with this base only in part: {unlike.sentence.removesuffix('.')}"


def _unmergeable_biases(contents: AdapterContents, base_tensors: Collection[str]) -> Iterator[str]:
    without = [target.module for target in contents.factored if target.module not in contents.biases]
    if contents.biases and any(f"{module}.bias" not in base_tensors for module in without):
        yield (
            "PEFT cannot merge this adapter (merge_and_unload), because it contains biases and some of its modules "
            "have none; --exclude '*.bias' leaves them out"
        )
