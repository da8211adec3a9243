"""Whether an endpoint reads the prompts that the weights' tokenizer and chat template give, by its counts of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deltarank.jobs.endpoints.sampled_answer import AnswerReader, tokenizer_differs
from deltarank.openai_api import Exchange, read_usage
from deltarank.results import EndpointApi, count


@dataclass(frozen=True)
class PromptTokens:
    """What the counts say.

    shift    1 or -1 if the endpoint has a BOS token more or less
    problem  why its answers cannot be scored, as a clause; None: they can
    notes    what is assumed, in sentences
    """

    shift: int = 0
    problem: str | None = None
    notes: tuple[str, ...] = ()


def compare_prompt_tokens(
    asked: Mapping[tuple[str, str], Exchange], side: str, api: EndpointApi, reader: AnswerReader
) -> PromptTokens:
    """Raises JobError (slug "endpoint-tokenizer-differs") if the difference varies from prompt to prompt."""
    pairs = []
    for (which, key), exchange in asked.items():
        theirs = read_usage(exchange.payload or {}).prompt_tokens
        purpose = key.rsplit(":", 1)[-1]
        if which == side and f":{api.value}:" in key and theirs is not None and purpose not in ("echo", "n"):
            pairs.append((reader.prompt_ids(exchange.request), theirs))
    offsets = {theirs - len(ids) for ids, theirs in pairs}
    if not offsets:
        return PromptTokens(notes=("It does not count the tokens of prompts: that it reads them as given is assumed.",))
    if len(offsets) > 1:
        span = f"from {min(offsets):+d} to {max(offsets):+d}"
        raise tokenizer_differs(
            f"the counts of {side.upper()} for {count(len(pairs), 'prompt')} differ {span} tokens from the finetune's"
        )
    (offset,) = offsets
    shift = reader.tokens.bos_shift(pairs[0][0], offset) if api is EndpointApi.COMPLETIONS else 0
    if offset != shift:
        return PromptTokens(problem=_other_prompt(offset, api))
    return PromptTokens(shift)


def _other_prompt(offset: int, api: EndpointApi) -> str:
    more = f"{count(abs(offset), 'token')} {'more' if offset > 0 else 'fewer'}"
    what, cure = (
        ("the finetune's chat template", " --completions may help")
        if api is EndpointApi.CHAT
        else ("the finetune's tokenizer", "")
    )
    return f"it reads {more} in each prompt than {what} gives: a hidden prompt or another template.{cure}"
