"""Where the texts come from: the answers of a run, or files of answers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltarank.divergence import read_json_lines
from deltarank.errors import JobError, UsageError
from deltarank.jobs.blind.options import LONGEST_TEXT
from deltarank.jobs.blind.texts import clean
from deltarank.results import (
    FINETUNE,
    FINETUNE_AGAIN,
    BlindKey,
    CandidateKind,
    CandidateResult,
    Logits,
    Outputs,
    Results,
    Role,
    Sample,
    listing,
    shorten,
)
from deltarank.system import nearest_path_in_words


@dataclass(frozen=True)
class PromptAnswers:
    """A prompt and what was answered, by role.

    spare            further answers of the reference that share random numbers with those of the other models at the
                     same index, and may begin as they do
    """

    prompt: str
    answers: Mapping[Role, Sequence[str]]
    spare: Sequence[str] = ()


@dataclass(frozen=True)
class TextSource:
    """The texts of a test, and what is known of them.

    models           the names of the models, by role
    secrets          further names that would give a model away
    kld              of the candidate on the reference's own answers, in nats per token: the mean, or that of their
                     beginnings if it is larger; None if unknown
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
    own = _on_own_answers(outputs, chosen)
    return TextSource(
        models={role: _NAMES.get(name, name) for role, name in columns.items()},
        prompts=prompts,
        sampler=_sampler(outputs.settings),
        kld=_kld(outputs, chosen),
        tokens=_tokens_per_character(own, outputs.samples) if own else None,
        run=path if path.is_dir() else path.parent,
        secrets=(results.base.ref, results.finetune.ref, outputs.reference, chosen.name),
    )


def is_run_of_test(results: Results, key: BlindKey) -> bool:
    """Whether a run has the candidate of a test, with the KLD that its key states."""
    outputs, name = results.outputs, key.models[Role.CANDIDATE]
    if key.run is None or outputs is None:
        return False
    found = [each for each in outputs.candidates if _NAMES.get(each.name, each.name) == name]
    return any(_kld(outputs, each) == key.kld for each in found)


def _kld(outputs: Outputs, candidate: CandidateResult) -> float | None:
    own = _on_own_answers(outputs, candidate)
    return _kld_of_beginnings(own) if own else None


def _on_own_answers(outputs: Outputs, candidate: CandidateResult) -> Logits | None:
    own = {text.name for text in outputs.texts if text.own}
    return next((each for each in candidate.logits if each.text in own), None)


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
            cure=f"Use --candidate with one of: {listing([repr(each.name) for each in offered], most=20)}.",
            slug="blind-candidate",
        )
    return chosen


def _of_sample(sample: Sample, columns: Mapping[Role, str]) -> PromptAnswers:
    """Of the finetune, those in `FINETUNE_AGAIN` share no random numbers with the candidate's and the base's."""
    answers = {role: sample.all_answers(name) for role, name in columns.items()}
    return PromptAnswers(sample.prompt, answers, sample.all_answers(FINETUNE))


def _sampler(settings: Mapping[str, Any]) -> str:
    return f"temperature 1, no top-p or top-k, at most {settings.get('max_tokens', '?')} tokens"


def _kld_of_beginnings(own: Logits) -> float:
    """The largest mean over tokens up to some position: a text that is cut has the beginning of an answer only.

    Beginnings with fewer tokens than there are answers are too few to tell.
    """
    means, tokens, total = [own.kld.mean], 0, 0.0
    for part in own.by_position:
        tokens, total = tokens + part.tokens, total + part.tokens * part.kld
        if tokens >= own.documents:
            means.append(total / tokens)
    return max(means)


def _tokens_per_character(own: Logits, samples: Sequence[Sample]) -> float | None:
    """Of the finetune's own answers that are stored whole; of all of them if none is."""
    lengths = {
        f"prompt {i}, answer {j}": len(text)
        for i, sample in enumerate(samples, start=1)
        for j, text in enumerate(sample.all_answers(FINETUNE_AGAIN), start=1)
    }
    known = [each for each in own.by_document if lengths.get(each.name)]
    whole = [each for each in known if lengths[each.name] < LONGEST_TEXT] or known
    return sum(each.tokens for each in whole) / sum(lengths[each.name] for each in whole) if whole else None


def _no_texts(path: Path, reason: str) -> JobError:
    return JobError(
        f"{path} has no texts for a blind test: {reason}.",
        cure="Run `deltarank outputs BASE FINETUNE -o RUN` with --samples 2 or more, or give files with --a and --b.",
        slug="blind-no-texts",
    )


# ---- files ------------------------------------------------------------------------------------------------------


def source_of_files(a: Path, b: Path, base: Path | None) -> TextSource:
    """The answers in .jsonl files: {"prompt": ..., "answer": ...} a line, several lines for several answers.

    A line may have "sampler", the sampling settings, which must be the same everywhere. They are known if all lines
    have them.

    Raises:
        JobError: a file cannot be read, has no answers, or has other prompts or another sampler.
    """
    files = {Role.REFERENCE: a, Role.CANDIDATE: b, **({Role.BASE: base} if base else {})}
    samplers: set[str | None] = set()
    answers = {role: _read_answers(path, samplers) for role, path in files.items()}
    for role, path in files.items():
        _check_prompts(a, answers[Role.REFERENCE], path, answers[role])
    names = _names_of(list(files.values()))
    return TextSource(
        models=dict(zip(files, names, strict=True)),
        prompts=[
            PromptAnswers(prompt, {role: by_prompt[prompt] for role, by_prompt in answers.items()})
            for prompt in answers[Role.REFERENCE]
        ],
        sampler=_one_sampler(samplers),
        secrets=[part for name in names for part in name.split("/")],
    )


def _names_of(files: Sequence[Path]) -> list[str]:
    """The names of the files; with their folders if two have the same."""
    absolute = [path.absolute().with_suffix("") for path in files]
    for parts in range(1, max(len(path.parts) for path in absolute)):
        names = ["/".join(path.parts[-parts:]) for path in absolute]
        if len(set(names)) == len(set(absolute)):
            return names
    return [path.as_posix() for path in absolute]


def _one_sampler(samplers: Iterable[str | None]) -> str | None:
    stated = sorted({each for each in samplers if each is not None})
    if len(stated) > 1:
        raise JobError(
            f"The files were sampled in different ways: {listing([repr(shorten(each)) for each in stated])}.",
            cure="Sample all answers with the same settings: otherwise people tell the settings apart, not the models.",
            slug="blind-samplers-differ",
        )
    return None if None in samplers else stated[0]


def _read_answers(path: Path, samplers: set[str | None]) -> dict[str, list[str]]:
    if not path.is_file():
        raise UsageError(
            f"There is no file of answers at {os.fspath(path)!r}.{nearest_path_in_words(path)}",
            cure='Give .jsonl files with a line {"prompt": ..., "answer": ...} for each answer.',
            slug="text-not-found",
        )
    answers: dict[str, list[str]] = {}
    for name, record in read_json_lines(path):
        prompt, answer = record.get("prompt"), record.get("answer")
        if not (isinstance(prompt, str) and isinstance(answer, str)):
            raise _bad_answers(f'{name} is not {{"prompt": "...", "answer": "..."}}, both texts')
        if not clean(prompt):
            raise _bad_answers(f"{name} has a prompt without any visible character")
        answers.setdefault(prompt, []).append(answer)
        samplers.add(_sampler_of(record))
    if not answers:
        raise _bad_answers(f"{path.name} has no answer: every line is empty")
    return answers


def _sampler_of(record: Mapping[str, Any]) -> str | None:
    """In words; settings in another form as JSON, whose order tells nothing."""
    stated = record.get("sampler")
    if isinstance(stated, str):
        return " ".join(stated.split()) or None
    return None if stated is None else json.dumps(stated, sort_keys=True)


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
