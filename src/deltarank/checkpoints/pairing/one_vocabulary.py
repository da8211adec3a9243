"""Shows a vocabulary that is one tensor in the loaded model as one, however the files store it.

Where the configuration ties the output head to the input embedding, files hold either of them or both. transformers 5
(`PreTrainedModel.tie_weights`) loads them as one tensor if only one is stored, or both with equal numbers; two unequal
ones are both kept, whatever the configuration says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from deltarank.checkpoints.checkpoint import Checkpoint
from deltarank.checkpoints.chunks import read_chunks
from deltarank.checkpoints.escape import quoted
from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.pairing.names import TensorLocator, VocabularyRole
from deltarank.checkpoints.pieces import FLOAT_DTYPES, Piece, SummedTensor, is_same_data
from deltarank.results import TIED_EMBEDDING, Outcome
from deltarank.tensor_names import LM_HEAD, kind_of_tensor

TIED_BY_DEFAULT = frozenset(
    {
        "albert", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot",
        "blenderbot-small", "blip", "bloom", "camembert", "canary", "cohere", "cohere2", "cohere2_moe", "convbert",
        "cpmant", "csm", "data2vec-text", "deberta", "deberta-v2", "deepseek_vl", "deepseek_vl_hybrid",
        "distilbert", "electra", "ernie", "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe", "falcon", "falcon_mamba",
        "flaubert", "flava", "florence2", "fnet", "fun_asr_nano", "funnel", "gemma", "gemma2", "gemma3",
        "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text",
        "glmasr", "got_ocr2", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese", "granite_docling",
        "granite_docling_text", "granite_speech", "granite_speech_plus", "granite_swa", "gte", "hunyuan_vl",
        "hyperclovax_vision_v2", "ibert", "internvl", "janus", "jetmoe", "jina_embeddings_v3", "kimi_k25",
        "kosmos-2", "kosmos-2.5", "lara_mini", "layoutlm", "led", "lfm2", "lfm2_moe", "lfm2_vl", "lfm3", "lfm3_vl",
        "lighton_ocr", "longformer", "longt5", "luke", "lxmert", "m2m_100", "mamba", "marian", "mbart",
        "megatron-bert", "minicpm3", "minicpm_ocr", "mistral3", "mobilebert", "modernbert", "modernbert-decoder",
        "moonshine", "moss_transcribe_diarize", "mpnet", "mpt", "mra", "mt5", "mvp", "nllb-moe", "nomic_bert",
        "nystromformer", "openai-gpt", "opt", "ovis2", "paddleocr_vl", "paligemma", "pegasus", "pegasus_x",
        "plbart", "pp_chart2table", "prophetnet", "qwen3_asr", "qwen3_vl_moe_text", "recurrent_gemma", "roberta",
        "roberta-prelayernorm", "roc_bert", "roformer", "seamless_m4t", "seamless_m4t_v2", "shieldgemma2",
        "smollm3", "speech_to_text", "speecht5", "squeezebert", "starcoder2", "switch_transformers", "t5",
        "t5gemma", "t5gemma2", "tapas", "trocr", "udop", "umt5", "vaultgemma", "vilt", "visual_bert",
        "voxtral_realtime", "whisper", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "yoso",
        "youtu", "zamba", "zamba2", "zaya",
    }
)  # fmt: skip
"""Model types whose configuration class in transformers 5.24 has `tie_word_embeddings=True` unless config.json says."""

_WITH_HEAD = re.compile(r"For(CausalLM|ConditionalGeneration|MaskedLM|PreTraining)$|LMHeadModel$")
"""Classes of transformers that predict tokens."""

_EMBEDDINGS = {"model.layers.": "model.embed_tokens.weight", "transformer.h.": "transformer.wte.weight"}
"""Where the embedding of a checkpoint is that stores only the head."""


def is_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether this configuration ties the head to the embedding; None without one."""
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    model_type = config.get("model_type")
    return model_type in TIED_BY_DEFAULT if isinstance(model_type, str) else None


def with_one_vocabulary(checkpoint: Checkpoint, other: Checkpoint) -> Checkpoint:
    """The checkpoint with its tied vocabulary once, under the embedding's name.

    Reads both tensors if both are stored and tied.

    Args:
        other: names the embedding, if this checkpoint stores only the head.
    """
    checkpoint = _without_repeated_embeddings(checkpoint, other)
    if is_tied(checkpoint.config) is False:
        return checkpoint
    embeddings, heads = _vocabulary(checkpoint)
    heads = heads or _heads_of_other_names(checkpoint, embeddings, other)
    if len(heads) != 1 or len(embeddings) > 1:
        return checkpoint
    head = heads[0]
    if not embeddings:
        return _with_head_as_embedding(checkpoint, head, other)
    if not _are_equal(checkpoint, embeddings[0], head):
        return checkpoint
    note = f"{quoted(head.name)} repeats {quoted(embeddings[0].name)}, to which it is tied: it is counted once"
    tensors = {name: info for name, info in checkpoint.tensors.items() if name != head.name}
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))


def _without_repeated_embeddings(checkpoint: Checkpoint, other: Checkpoint) -> Checkpoint:
    """The checkpoint without embeddings that repeat another one, as `.bin` files of T5 and BART have them.

    One that the other checkpoint stores with numbers of its own stays, to be compared.
    """
    ours = _repeated(checkpoint)
    theirs = _repeated(other) if ours else {}
    repeated = {name: first for name, first in ours.items() if name not in other.tensors or name in theirs}
    if not repeated:
        return checkpoint
    notes = [f"{quoted(name)} repeats {quoted(first)}: it is counted once" for name, first in repeated.items()]
    tensors = {name: info for name, info in checkpoint.tensors.items() if name not in repeated}
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, *notes))


def _repeated(checkpoint: Checkpoint) -> dict[str, str]:
    """The embeddings that have the numbers of another one -> that one, whose name is the shortest."""
    embeddings = sorted(_vocabulary(checkpoint)[0], key=lambda info: info.name.count("."))
    return {info.name: embeddings[0].name for info in embeddings[1:] if _are_equal(checkpoint, embeddings[0], info)}


def _heads_of_other_names(
    checkpoint: Checkpoint, embeddings: Sequence[TensorInfo], other: Checkpoint
) -> list[TensorInfo]:
    """A matrix of the embedding's shape outside of the layers, which only this side has: Whisper's `proj_out`."""
    if len(embeddings) != 1:
        return []
    locator = TensorLocator(checkpoint.tensors)
    found = [info for info in checkpoint.tensors.values() if info.shape == embeddings[0].shape]
    new = [info for info in found if info is not embeddings[0] and info.name not in other.tensors]
    return [info for info in new if locator.locate(info.name).layer is None and info.name.endswith(".weight")]


def state_tied_embedding(
    summed: Sequence[SummedTensor], base: Checkpoint, finetune: Checkpoint
) -> Iterator[SummedTensor]:
    """States of the embedding that it is the output head, too, if it is that in both checkpoints.

    Args:
        base, finetune: as `with_one_vocabulary` returns them.
    """
    is_head = _embedding_is_head(base) and _embedding_is_head(finetune)
    embeddings = {info.name for info in _vocabulary(finetune)[0]} if is_head else ()
    for tensor in summed:
        is_embedding = tensor.name in embeddings and tensor.outcome is Outcome.EMBEDDING
        yield replace(tensor, reason=TIED_EMBEDDING) if is_embedding else tensor


def _embedding_is_head(checkpoint: Checkpoint) -> bool:
    """Whether the model has an output head, and its only matrix is that of the embedding."""
    is_stored = any(kind_of_tensor(name) == LM_HEAD for name in checkpoint.tensors)
    return predicts_tokens(checkpoint) and not is_stored and is_tied(checkpoint.config) is True


def predicts_tokens(checkpoint: Checkpoint) -> bool:
    """Whether the configuration names a class with an output head over the vocabulary."""
    architectures = checkpoint.config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    return any(isinstance(name, str) and _WITH_HEAD.search(name) for name in names)


def _vocabulary(checkpoint: Checkpoint) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """The token embeddings and the output heads."""
    locator = TensorLocator(checkpoint.tensors)
    weights = [info for name, info in checkpoint.tensors.items() if name.endswith("weight")]
    roles = [(info, locator.locate(info.name).vocabulary) for info in weights]
    embeddings = [info for info, role in roles if role is VocabularyRole.INPUT]
    return embeddings, [info for info, role in roles if role is VocabularyRole.HEAD]


def _with_head_as_embedding(checkpoint: Checkpoint, head: TensorInfo, other: Checkpoint) -> Checkpoint:
    """A model without an embedding of its own looks tokens up in its head."""
    theirs = [info.name for info in _vocabulary(other)[0]]
    names = list(checkpoint.tensors)
    stacks = [name for prefix, name in _EMBEDDINGS.items() if any(each.startswith(prefix) for each in names)]
    name = next(iter(theirs if len(theirs) == 1 else stacks), None)
    if name is None or name in checkpoint.tensors:
        return checkpoint
    tensors = {key: info for key, info in checkpoint.tensors.items() if key != head.name}
    note = f"{quoted(head.name)} is the embedding, too, since the two are tied and only one is stored"
    return replace(checkpoint, tensors={**tensors, name: replace(head, name=name)}, notes=(*checkpoint.notes, note))


def _are_equal(checkpoint: Checkpoint, one: TensorInfo, other: TensorInfo) -> bool:
    """Bit for bit. Reading ends at the first difference."""
    if one.shape != other.shape or one.dtype != other.dtype or one.dtype not in FLOAT_DTYPES or len(one.shape) != 2:
        return False
    rows, columns = one.shape
    pieces = [Piece.from_info(info, checkpoint.source, (rows, columns)) for info in (one, other)]
    if is_same_data(*pieces):
        return True
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for _, a, b in read_chunks(*pieces))
