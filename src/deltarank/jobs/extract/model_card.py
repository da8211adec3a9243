"""The model card of an adapter: what it is, what it lost, how it was made, and how to load it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deltarank.adapters import BUDGET_PICTURE_FILE
from deltarank.jobs.extract.result import ExtractedAdapter
from deltarank.results import CalibrationScore, Reference, count, figure, percent, size
from deltarank.servers import PEFT, get_server
from deltarank.tensor_names import kind_in_words

FIRST_LINE, LAST_LINE = "<!-- deltarank: results -->", "<!-- deltarank: end of results -->"
"""The marks around what `outputs` replaces."""

_GUIDE = "https://github.com/deltarank/deltarank/blob/main/docs/how-to/extract-verify-serve.md"
_BAR = 40
_MOST_NAMES = 12

_SCORE_COLUMNS = (
    "text",
    "documents",
    "base",
    "plain extraction, this rank",
    "plain extraction, any rank",
    "this adapter",
    "95 % interval",
    "below plain extraction, this rank",
    "95 % interval",
)


def render_model_card(adapter: ExtractedAdapter, *, picture: bool = False) -> str:
    """Markdown, with the front matter that the Hub reads.

    Args:
        picture: whether the folder contains the picture of the budget; without one, the card has a chart in text.
    """
    sections = (
        _front_matter(adapter),
        _heading(adapter),
        _calibration(adapter),
        _chart(adapter, picture),
        _modules(adapter),
        _left_out(adapter),
        _loading(adapter),
        _provenance(adapter),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"


def _front_matter(adapter: ExtractedAdapter) -> Iterator[str]:
    yield from ("---", "library_name: peft", "tags:", "- lora", "- deltarank")
    if adapter.base.revision is not None:  # else it is a local folder, which is no model of the Hub
        yield f"base_model: {_plain(adapter.base.ref)}"
    yield "---"


def _heading(adapter: ExtractedAdapter) -> Iterator[str]:
    yield f"# {_plain(adapter.finetune.short_name)} as a rank-{adapter.rank} LoRA"
    yield ""
    yield (
        f"A LoRA adapter, extracted from the difference between the finetune {_code(adapter.finetune.ref)} and its "
        f"base {_code(adapter.base.ref)}."
    )
    yield ""
    yield from results_section(adapter)


def results_section(adapter: ExtractedAdapter) -> Iterator[str]:
    """What the adapter keeps, between the marks that `update_card` looks for: behaviour first if it was measured."""
    sentences = f"It {_plain(adapter.sentence)}.", _plain(adapter.budget.limit()), adapter.noise_sentence
    weights = " ".join(filter(None, sentences))
    yield FIRST_LINE
    if adapter.behaviour is None and adapter.calibration is not None:
        yield f"**It is {_plain(adapter.calibration.distances)}**"
        yield ""
        yield weights
    elif adapter.behaviour is None:
        yield weights
        yield ""
        refs = f"{adapter.base.ref} {adapter.finetune.ref}"
        command = _code(f"deltarank outputs {refs} --adapter this-folder --update-cards")
        yield f"These figures are about the weights. What they mean for the text was not measured: use {command}."
    else:
        measured = adapter.behaviour
        applied = f", applied as {get_server(measured.server).title} does" if measured.server else ""
        yield f"**It {_plain(measured.sentence)}.**"
        yield ""
        yield (
            f"That is the mean KL divergence of the next-token distributions over {count(measured.tokens, 'token')} in "
            f"{count(measured.documents, 'document')}{applied}. Behaviour kept is 100 % for the finetune and 0 % for "
            "the base."
        )
        if adapter.calibration is not None:
            yield ""
            yield (
                f"In its calibration it was {figure(adapter.calibration.held_out.kld_calibrated)} nats per token from "
                "the finetune, on documents that it was not fitted to (below): the distance depends on the text."
            )
        yield ""
        yield weights
    yield LAST_LINE


def _chart(adapter: ExtractedAdapter, picture: bool) -> Iterator[str]:
    """The budget as a picture, or as bars of text."""
    if picture:
        yield from ("## Where the change went", "", f"![This LoRA {_plain(adapter.sentence)}.]({BUDGET_PICTURE_FILE})")
        return
    budget = adapter.budget
    rows = [("kept", budget.kept), ("truncated", budget.truncated), ("rounded", budget.rounded)]
    rows += [("given up to fit the predictions", budget.fitted)] if budget.fitted else []
    rows += [(kind_in_words(kind), share) for kind, (_, share) in budget.by_kind().items()]
    width, longest = max(len(_plain(word)) for word, _ in rows), max(1.0, *(share for _, share in rows))
    yield from (
        "## Where the change went",
        "",
        "Shares of ||W - W0||^2 (W: finetune, W0: base), summed over all tensors that both have.",
        "",
        "```",
    )
    for word, share in rows:
        yield f"{_plain(word):<{width}}  {'█' * round(_BAR * share / longest):<{_BAR}}  {percent(share)}"
    yield "```"
    if budget.why_negative:
        yield ""
        yield f"What is kept is {budget.why_negative}."


def _calibration(adapter: ExtractedAdapter) -> Iterator[str]:
    """What the calibration reached, as a table; the first sentence of the card is about the same figures."""
    calibration = adapter.calibration
    if calibration is None:
        return
    yield from ("## How near it is to the finetune", "")
    yield " ".join(_plain(sentence) for sentence in calibration.remarks)
    yield from (
        "",
        "Mean KL divergence from the finetune in nats per token, on documents that neither fitted nor chose:",
        "",
        f"| {' | '.join(_SCORE_COLUMNS)} |",
        f"| --- |{' ---: |' * (len(_SCORE_COLUMNS) - 1)}",
        _score_row("the calibration's kind", calibration.held_out),
        _score_row("another kind (built-in passages)", calibration.other_text),
    )
    if any(score.has_groups for score in (calibration.held_out, calibration.other_text)):
        yield from ("", "Answers to one prompt, and parts of one text, are one group. The intervals are over groups.")


def _score_row(text: str, score: CalibrationScore) -> str:
    klds = (score.kld_base, score.kld_plain, score.kld_any_rank, score.kld_calibrated)
    cells = ("" if kld is None else figure(kld) for kld in klds)
    groups = f" in {score.groups:,} groups" if score.has_groups else ""
    gain = percent(score.gain, unknown=""), score.gain_interval()
    return f"| {text} | {score.documents:,}{groups} | {' | '.join([*cells, score.interval, *gain])} |"


def _modules(adapter: ExtractedAdapter) -> Iterator[str]:
    if adapter.calibration and adapter.calibration.steps:
        return  # deltarank.json has them: factors that were fitted to predictions were not fitted to keep much
    yield from (
        "## By module",
        "",
        "| module | matrices | kept by the best LoRA of this rank | kept by this adapter |",
        "| --- | ---: | ---: | ---: |",
    )
    for module, number, kept in adapter.modules:
        yield f"| {_code(module)} | {number:,} | {percent(adapter.promised(module))} | {percent(kept)} |"


def _left_out(adapter: ExtractedAdapter) -> Iterator[str]:
    tensors = adapter.budget.tensors
    if not tensors:
        return
    yield from ("## What it leaves out", "", "| tensor | share of the change | reason |", "| --- | ---: | --- |")
    for tensor in tensors[:_MOST_NAMES]:
        yield f"| {_code(tensor.name)} | {percent(tensor.share)} | {_plain(tensor.reason)} |"
    if len(tensors) > _MOST_NAMES:
        yield ""
        yield f"`deltarank.json` lists {count(len(tensors) - _MOST_NAMES, 'more tensor')}."


def _loading(adapter: ExtractedAdapter) -> Iterator[str]:
    rules, loader = get_server(adapter.server), _loader(adapter.load_check.model_class)
    yield from (
        "## How to load it",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {loader}",
        "",
    )
    yield f"base = {loader}.from_pretrained({_plain(adapter.base.ref)!r})"
    yield 'model = PeftModel.from_pretrained(base, "this-folder")'
    yield "```"
    if rules.serve_command and rules.name != PEFT:
        yield ""
        yield from (
            "```",
            rules.serve_command.format(
                base=_plain(adapter.base.ref), adapter="this-folder", slot=rules.slot_for(adapter.rank)
            ),
            "```",
        )
    yield ""
    yield f"[How to serve it, and to check that a server applies it]({_GUIDE}#serve-it)."
    yield ""
    evidence = rules.evidence.sentence
    yield f"It is made for {rules.title}: {evidence}. lora_alpha is the rank: the scale is 1."
    yield ""
    yield f"{_plain(adapter.load_check.sentence)}."


def _loader(model_class: str | None) -> str:
    """The class to load the base with."""
    is_other = model_class is not None and not model_class.endswith(("ForCausalLM", "LMHeadModel"))
    return str(model_class) if is_other else "AutoModelForCausalLM"


def _provenance(adapter: ExtractedAdapter) -> Iterator[str]:
    settings = adapter.settings
    yield from ("## How it was made", "")
    if settings.get("command"):
        yield from ("```", _plain(settings["command"]), "```", "")
    versions = f"deltarank {adapter.tool_version}, torch {_plain(settings.get('torch', ''))}"
    yield f"{versions}, {adapter.created}; the factors A and B are stored in {adapter.dtype}."
    yield ""
    yield from (
        "| | checkpoint | commit | files | fingerprint (of headers, file sizes and times) |",
        "| --- | --- | --- | --- | --- |",
    )
    fingerprints = settings.get("fingerprints", {})
    for side, reference in (("base", adapter.base), ("finetune", adapter.finetune)):
        yield _checkpoint_row(side, reference, str(fingerprints.get(side, "")))
    yield from _notes(adapter.notes)


def _checkpoint_row(side: str, reference: Reference, fingerprint: str) -> str:
    files = f"{count(len(reference.files), 'file')}, {size(sum(reference.files.values()))}"
    return f"| {side} | {_code(reference.ref)} | {reference.revision or ''} | {files} | `{fingerprint}` |"


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield ""
        yield from (f"- {_plain(note)}" for note in notes)


def _plain(text: str) -> str:
    """One line that neither Markdown nor a terminal interprets: names in checkpoints are hostile text."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line.replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


def _code(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return "`" + line.replace("`", "'").replace("|", "\\|") + "`"
