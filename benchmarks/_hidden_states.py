"""Adapters on an encoder that shall have a finetune's last hidden states: by gradient descent, and in closed form.

E = sum ||h - h*||^2 over the tokens of some documents, [CLS] and [SEP] included, or over [CLS] alone. h is the last
hidden state of the base with the adapter, h* the finetune's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import BertModel

from deltarank.jobs.calibrate.distill import BASE_DOCUMENTS
from deltarank.jobs.calibrate.muon import Muon
from deltarank.jobs.calibrate.schedule import SLOWER, batches_of_steps, is_time_to_look, rate, step_size

TOGETHER, GRADIENTS_TOGETHER = 32, 4
"""Documents that are read at once, without and with an autograd graph."""

RIDGES = (1e-2, 1e-1, 1.0)
"""Of the closed form: lambda in units of the mean square of an input."""

PADDING = 0

ALL_TOKENS, FIRST_TOKEN = slice(None), slice(1)
"""Over which E is summed."""


@dataclass(frozen=True)
class Text:
    """A document as token ids, and the finetune's last hidden states on it, (tokens, hidden)."""

    ids: Sequence[int]
    expected: Tensor


def states(model: nn.Module, documents: Sequence[Sequence[int]]) -> list[Tensor]:
    """The last hidden states of each document, (tokens, hidden). With an autograd graph where gradients are on."""
    ids, mask = _padded(documents)
    found = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [found[i, : len(each)] for i, each in enumerate(documents)]


@torch.no_grad()
def read(model: nn.Module, documents: Sequence[Sequence[int]]) -> list[Tensor]:
    """As `states`, a few documents of similar length at a time, without a graph."""
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    parts = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
    found = {
        i: each for part in parts for i, each in zip(part, states(model, [documents[i] for i in part]), strict=True)
    }
    return [found[i] for i in range(len(documents))]


def error(model: nn.Module, texts: Sequence[Text], tokens: slice = ALL_TOKENS) -> float:
    """E over the documents."""
    found = read(model, [text.ids for text in texts])
    return sum(float((h - text.expected)[tokens].square().sum()) for h, text in zip(found, texts, strict=True))


def load(base: Path, adapter: Path) -> PeftModel:
    """The base with an adapter, of which A and B can be trained. Dropout is off."""
    return PeftModel.from_pretrained(BertModel.from_pretrained(base), adapter, is_trainable=True).eval()


def factors(model: PeftModel) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


@torch.no_grad()
def set_factors(model: PeftModel, values: dict[str, Tensor]) -> None:
    for name, parameter in factors(model).items():
        parameter.copy_(values[name])


def copied(model: PeftModel) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in factors(model).items()}


def descend(
    model: PeftModel, fit: Sequence[Text], choose: Sequence[Text], tokens: slice, *, steps: int, seed: int
) -> int:
    """Moves A and B down the gradient of E with the optimiser, schedule and step rule of `extract --calibrate`.

    The model then has the factors of the look that is best on the documents that choose, the start among them.

    Returns:
        The number of steps of that look.
    """
    few = choose[:BASE_DOCUMENTS]
    with model.disable_adapter():
        of_base = error(model, few, tokens)
    size = step_size(error(model, few, tokens), of_base)
    rates = {each: size * float(each.detach().square().mean().sqrt()) for each in factors(model).values()}
    groups = [{"params": [each], "lr": rate, "first": rate} for each, rate in rates.items()]
    optimizer = Muon(groups)
    best, best_step, kept = error(model, choose, tokens), 0, copied(model)
    lengths = {i: len(text.ids) for i, text in enumerate(fit)}
    for step, batch in enumerate(batches_of_steps(lengths, steps, seed), start=1):
        _accumulate(model, [fit[i] for i in batch], tokens)
        for group in optimizer.param_groups:
            group["lr"] = group["first"] * rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        if not is_time_to_look(step, steps):
            continue
        if (found := error(model, choose, tokens)) < best:
            best, best_step, kept = found, step, copied(model)
        else:
            go_back(model, kept, optimizer)
    set_factors(model, kept)
    return best_step


def go_back(model: PeftModel, best: dict[str, Tensor], optimizer: Muon) -> None:
    """To the best factors, for smaller steps from there."""
    set_factors(model, best)
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["first"] *= SLOWER


def _accumulate(model: nn.Module, batch: Sequence[Text], tokens: slice) -> None:
    """The gradient of E over the squared norm of h*: relative, so that its scale does not depend on the batch."""
    norm = sum(float(text.expected[tokens].square().sum()) for text in batch)
    for few in _of_similar_length(batch, GRADIENTS_TOGETHER):
        found = torch.cat([each[tokens] for each in states(model, [text.ids for text in few])])
        expected = torch.cat([text.expected[tokens] for text in few])
        ((found - expected).square().sum() / norm).backward()


def _of_similar_length(texts: Sequence[Text], size: int) -> list[list[Text]]:
    """Parts of so many documents, with little padding."""
    in_order = sorted(texts, key=lambda text: len(text.ids))
    return [in_order[start : start + size] for start in range(0, len(in_order), size)]


@dataclass(frozen=True)
class ModuleOutputs:
    """What the finetune's linear modules put out on some documents, by name, (tokens, out)."""

    documents: Sequence[Sequence[int]]
    outputs: dict[str, Tensor]

    @classmethod
    def of(cls, finetune: BertModel, names: Sequence[str], documents: Sequence[Sequence[int]]) -> ModuleOutputs:
        known, mask = dict[str, Tensor](), _padded(documents)[1].bool()
        modules = dict(finetune.named_modules())

        def keep(name: str) -> Any:
            return modules[name].register_forward_hook(lambda _, __, found: known.update({name: found[mask]}))

        with _removed([keep(name) for name in names]), torch.no_grad():
            states(finetune, documents)
        return cls(documents, known)


def fit_in_closed_form(model: PeftModel, wanted: ModuleOutputs, finetune: BertModel, *, ridge: float) -> None:
    """Fits module after module, in the order in which they run, each with the inputs X that those before it leave.

    M = argmin ||Y* - b0 - (W0 + M) X||^2 + lambda ||M - (W* - W0)||^2, with the finetune's outputs Y* ("anchored"), and
    L = U U' M is the best of rank r in the norm of C + lambda I, where C = X X' and U are the leading eigenvectors of
    M (C + lambda I) M'. A and B are the square-root split of L. lambda = `ridge` times the mean diagonal of C.
    """
    mask = _padded(wanted.documents)[1].bool()
    weights = {name: each.weight.detach() for name, each in finetune.named_modules() if isinstance(each, nn.Linear)}

    def fit(name: str, layer: Any) -> Any:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            _fit_module(layer, inputs[0][mask].double(), wanted.outputs[name].double(), weights[name].double(), ridge)

        return layer.register_forward_pre_hook(before)

    layers = {name.removeprefix("base_model.model."): each for name, each in model.named_modules()}
    with _removed([fit(name, layers[name]) for name in wanted.outputs]), torch.no_grad():
        states(model, wanted.documents)


def _fit_module(layer: Any, inputs: Tensor, expected: Tensor, after: Tensor, ridge: float) -> None:
    """Sets A and B of one module.

    Args:
        inputs: X', (tokens, in), of the base with the adapter.
        expected: Y*', (tokens, out).
        after: the finetune's weight, (out, in).
    """
    before, bias = layer.base_layer.weight.double(), layer.base_layer.bias.double()
    covariance = inputs.T @ inputs
    penalty = ridge * covariance.diagonal().mean()
    covariance.diagonal().add_(penalty)
    missing = (expected - bias - inputs @ before.T).T @ inputs
    whole = torch.linalg.solve(covariance, (missing + penalty * (after - before)).T).T
    rank = layer.r["default"]
    leading = torch.linalg.eigh(whole @ covariance @ whole.T).eigenvectors[:, -rank:]
    u, s, v = torch.linalg.svd(leading.T @ whole, full_matrices=False)
    layer.lora_A["default"].weight.copy_(s.sqrt()[:, None] * v / layer.scaling["default"])
    layer.lora_B["default"].weight.copy_(leading @ u * s.sqrt())


def _padded(documents: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and the attention mask, (documents, longest)."""
    longest = max(map(len, documents))
    ids = torch.full((len(documents), longest), PADDING)
    mask = torch.zeros_like(ids)
    for i, each in enumerate(documents):
        ids[i, : len(each)] = torch.tensor(each)
        mask[i, : len(each)] = 1
    return ids, mask


@contextmanager
def _removed(hooks: Sequence[Any]) -> Iterator[None]:
    """At the end, the hooks are off."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
