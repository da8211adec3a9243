"""Where the texts come from: the answers of a run, or files of answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltarank.divergence import read_json_lines
from deltarank.errors import JobError, UsageError
from deltarank.results import (
    FINETUNE,
    FINETUNE_AGAIN,
    CandidateKind,
    CandidateResult,
    Logits,
    Outputs,
    Results,
    Role,
    Sample,
    listing,
)
from deltarank.system import nearest_path_in_words


@dataclass(frozen=True)
class PromptAnswers:
    """A prompt and what was answered, by role.

    spare            further answers of the reference that are not independent of the others' (they share random
                     numbers), so that they only stand beside each other
    """

    prompt: str
    answers: Mapping[Role, Sequence[str]]
    spare: Sequence[str] = ()


@dataclass(frozen=True)
class TextSource:
    """The texts of a test, and what is known of them.

    models           the names of the models, by role
    secrets          further names that would give a model away
    kld              of the candidate on the reference's own answers, in nats per token; None if unknown
    tokens           of the reference's answers for each character; None if unknown
    run              the folder of the run; None for files
    """

    models: Mapping[Role, str]
    prompts: Sequence[PromptAnswers]
    sampler: str | None = None
    kld: float | None = None
    tokens: float | None = None
    run: Path | None = None
    secrets: Sequence[str] = field(default_factory=tuple)


_NAMES = {FINETUNE_AGAIN: "the finetune", "base": "the base"}
"""How sentences call the models of a run, by the name of their answers."""


# ---- a run ------------------------------------------------------------------------------------------------------


def source_of_run(path: Path, candidate: str | None) -> TextSource:
    """The answers of the finetune, of a candidate and of the base, in a run with outputs.

    Raises:
        ResultsError: there is no run.
        UsageError: (slug "blind-candidate") no candidate has this name, or it is a control.
        JobError: (slug "blind-no-texts") the run has no answers of both.
    """
    results = Results.load(path)
    outputs = results.outputs
    if outputs is None or not outputs.samples:
        raise _no_texts(path, "it has no outputs" if outputs is None else "its outputs have no answers to prompts")
    chosen = _candidate(outputs, candidate)
    columns = {Role.REFERENCE: FINETUNE_AGAIN, Role.CANDIDATE: chosen.name}
    base = next((each.name for each in outputs.candidates if each.kind is CandidateKind.BASE), None)
    if base is not None and base != chosen.name:
        columns[Role.BASE] = base
    prompts = [_of_sample(sample, columns) for sample in outputs.samples]
    if not any(each.answers[Role.REFERENCE] and each.answers[Role.CANDIDATE] for each in prompts):
        raise _no_texts(path, f"no prompt was answered by both the finetune and {chosen.name}")
    own = next((on for text in outputs.texts if text.own for on in chosen.logits if on.text == text.name), None)
    return TextSource(
        models={role: _NAMES.get(name, name) for role, name in columns.items()},
        prompts=prompts,
        sampler=_sampler(outputs.settings),
        kld=own.kld.mean if own else None,
        tokens=_tokens_per_character(own, outputs.samples) if own else None,
        run=path if path.is_dir() else path.parent,
        secrets=(results.base.ref, results.finetune.ref, outputs.reference, chosen.name),
    )


def _candidate(outputs: Outputs, name: str | None) -> CandidateResult:
    """The candidate of this name, or that of the headline."""
    offered = [each for each in outputs.candidates if each.kind.answers_prompts]
    chosen = (
        outputs.headline_candidate(offered)
        if name is None
        else next((each for each in offered if each.name == name), None)
    )
    if chosen is None:
        raise UsageError(
            f"The run has no candidate {name!r}." if name else "The run has no candidate to compare the finetune with.",
            cure=f"Use --candidate with one of: {listing([repr(each.name) for each in offered], most=20) or 'none'}.",
            slug="blind-candidate",
        )
    return chosen


def _of_sample(sample: Sample, columns: Mapping[Role, str]) -> PromptAnswers:
    """Of the finetune, those in `FINETUNE_AGAIN` share no random numbers with the candidate's and the base's."""
    answers = {role: sample.all_answers(name) for role, name in columns.items()}
    return PromptAnswers(sample.prompt, answers, sample.all_answers(FINETUNE))


def _sampler(settings: Mapping[str, Any]) -> str:
    return f"temperature 1, no top-p or top-k, at most {settings.get('max_tokens', '?')} tokens"


def _tokens_per_character(own: Logits, samples: Sequence[Sample]) -> float | None:
    """Mean tokens of the finetune's answers over their mean characters."""
    lengths = [len(text) for sample in samples for text in sample.all_answers(FINETUNE_AGAIN)]
    return own.tokens / own.documents / (sum(lengths) / len(lengths)) if sum(lengths) else None


def _no_texts(path: Path, reason: str) -> JobError:
    return JobError(
        f"{path} has no texts for a blind test: {reason}.",
        cure="Run `deltarank outputs BASE FINETUNE -o RUN` with --samples 2 or more, or give files with --a and --b.",
        slug="blind-no-texts",
    )


# ---- files ------------------------------------------------------------------------------------------------------


def source_of_files(a: Path, b: Path, base: Path | None) -> TextSource:
    """The answers in .jsonl files: {"prompt": ..., "answer": ...} a line, several lines for several answers.

    A line may have "sampler", the sampling settings in words, which must be the same everywhere.

    Raises:
        JobError: a file cannot be read, has no answers, or has other prompts or another sampler.
    """
    files = {Role.REFERENCE: a, Role.CANDIDATE: b, **({Role.BASE: base} if base else {})}
    samplers: set[str] = set()
    answers = {role: _read_answers(path, samplers) for role, path in files.items()}
    for role, path in files.items():
        _check_prompts(a, answers[Role.REFERENCE], path, answers[role])
    if len(samplers) > 1:
        raise JobError(
            f"The files were sampled in different ways: {listing([repr(each) for each in sorted(samplers)])}.",
            cure="Sample all answers with the same settings: otherwise people tell the settings apart, not the models.",
            slug="blind-samplers-differ",
        )
    return TextSource(
        models={role: path.stem for role, path in files.items()},
        prompts=[
            PromptAnswers(prompt, {role: by_prompt[prompt] for role, by_prompt in answers.items()})
            for prompt in answers[Role.REFERENCE]
        ],
        sampler=next(iter(samplers), None),
        secrets=[path.stem for path in files.values()],
    )


def _read_answers(path: Path, samplers: set[str]) -> dict[str, list[str]]:
    if not path.is_file():
        raise UsageError(
            f"There is no file of answers at {os.fspath(path)!r}.{nearest_path_in_words(path)}",
            cure='Give .jsonl files with a line {"prompt": ..., "answer": ...} for each answer.',
            slug="text-not-found",
        )
    answers: dict[str, list[str]] = {}
    for name, record in read_json_lines(path):
        prompt, answer = record.get("prompt"), record.get("answer")
        if not (isinstance(prompt, str) and isinstance(answer, str) and prompt.strip()):
            raise _bad_answers(f'{name} is not {{"prompt": "...", "answer": "..."}}, both texts')
        answers.setdefault(prompt, []).append(answer)
        if "sampler" in record:
            samplers.add(str(record["sampler"]))
    if not answers:
        raise _bad_answers(f"{path.name} has no answer: every line is empty")
    return answers


def _bad_answers(reason: str) -> JobError:
    return JobError(
        f"Not a file of answers: {reason}.",
        cure='Write one answer per line: {"prompt": "...", "answer": "..."}.',
        slug="blind-answers-unreadable",
    )


def _check_prompts(a: Path, expected: Iterable[str], path: Path, found: Iterable[str]) -> None:
    missing, more = set(expected) - set(found), set(found) - set(expected)
    if missing or more:
        one, where = (min(missing), f"is in {a.name} only") if missing else (min(more), f"is in {path.name} only")
        shown = one if len(one) <= 60 else f"{one[:60]}..."
        raise JobError(
            f"{a.name} and {path.name} have different prompts: {len(missing) + len(more):,} are in one of them only; "
            f"{shown!a} {where}.",
            cure="Give every model the same prompts, each with an answer.",
            slug="blind-prompts-differ",
        )
