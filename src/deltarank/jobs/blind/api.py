"""The library's functions: make a blind test, and score its votes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from deltarank.errors import JobError, OutputError, UsageError
from deltarank.jobs.blind.blind_test import BlindTest
from deltarank.jobs.blind.make import make_ballot, make_key
from deltarank.jobs.blind.options import BlindOptions
from deltarank.jobs.blind.score import score_votes
from deltarank.jobs.blind.sources import TextSource, is_run_of_test, source_of_files, source_of_run
from deltarank.jobs.blind.votes import read_key, read_votes
from deltarank.report import vote_page
from deltarank.results import BlindKey, BlindScore, Results, Role
from deltarank.system import Default, user_path, write_bytes_atomically

KEY, PAGE = "key.json", "vote.html"

Path_ = str | Path


def make_blind_test(
    run: Path_ | None = None,
    *,
    output: Path_,
    a: Path_ | None = None,
    b: Path_ | None = None,
    base: Path_ | None = None,
    candidate: str | None = None,
    pairs: int = Default.BLIND_PAIRS,
    preferences: int = Default.BLIND_PREFERENCES,
    characters: int = Default.BLIND_CHARACTERS,
    people: int = Default.BLIND_PEOPLE,
    force: bool = False,
    seed: int | None = None,
) -> BlindTest:
    """Makes a blind test of two models: a page to vote on, and a key that only its hash on the page gives away.

    Args:
        run: the folder of a run with outputs; the finetune is compared with a candidate.
        output: the folder for vote.html and key.json.
        a, b, base: .jsonl files of answers instead of a run, {"prompt": ..., "answer": ...} a line: of the reference,
            of the candidate and, for pairs that anybody should tell apart, of a third model.
        candidate: its name in the run; None: that of the headline.
        pairs: how many pairs ask "who wrote X: A or B?". One of each kind of catch pair is added for every eight.
        preferences: how many pairs ask "which do you like better?".
        characters: the longest text that is shown.
        people: how many are expected to vote; the score of all together is weighted for this number.
        force: replaces a test in `output`.
        seed: of the random numbers; None: those of the operating system. Who can guess a seed can guess the key.

    Raises:
        UsageError: an argument is not usable.
        ResultsError, JobError: the run or the files cannot be read, or have too few answers.
        OutputError: `output` contains a test, or cannot be written.
    """
    options = BlindOptions(pairs=pairs, preferences=preferences, characters=characters, people=people)
    source = _source(run, a, b, base, candidate)
    folder = user_path(output)
    if not force:
        _check_free(folder)
    key, ballot_pairs, notes = make_key(source, options, folder, _now(), seed)
    content = key.to_json().encode()
    digest = hashlib.sha256(content).hexdigest()
    ballot = make_ballot(key, digest, ballot_pairs)
    page = vote_page(ballot)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(folder / KEY, content)
        write_bytes_atomically(folder / PAGE, page.encode())
    except OSError as error:
        raise _unwritable(folder, error) from error
    return BlindTest(folder, key, digest, ballot.minutes, notes)


def score_blind_test(key: Path_, votes: Sequence[Path_], *, run: Path_ | None = None) -> BlindScore:
    """Scores the votes of a blind test, and adds the score to the results of the run that it was made from.

    Args:
        key: the test's key.json, or its folder.
        votes: the files that the page exported, one for each person.
        run: the folder of the run; None: where it was when the test was made. If it is not there, only the score is
            returned.

    Raises:
        ResultsError: a file cannot be read.
        JobError: votes are of another test, of a changed key, edited, or twice by the same voter.
    """
    opened, digest = read_key(user_path(key))
    ballots = read_votes(opened, digest, [user_path(each) for each in _as_list(votes)])
    folder = _run_folder(user_path(key), opened, run)
    score = score_votes(opened, digest, ballots, _now())
    if folder is None:
        return score
    results = Results.load(folder)
    others = tuple(each for each in results.blind if each.test != score.test)
    try:
        replace(results, blind=(*others, score)).save(folder / "results.json")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return score


def run_of_test(key: Path_, run: Path_ | None = None) -> Path | None:
    """The folder of the run that a score is added to; None where there is none (any more)."""
    return _run_folder(user_path(key), read_key(user_path(key))[0], run)


def _source(
    run: Path_ | None, a: Path_ | None, b: Path_ | None, base: Path_ | None, candidate: str | None
) -> TextSource:
    if run is not None and a is None and b is None and base is None:
        return source_of_run(user_path(run), candidate)
    if run is None and a is not None and b is not None and candidate is None:
        return source_of_files(user_path(a), user_path(b), None if base is None else user_path(base))
    raise UsageError(
        "A blind test is made from a run, or from two files of answers.",
        cure="Give RUN (and --candidate), or --a and --b (and --base), and not both.",
        slug="blind-source",
    )


def _run_folder(key: Path, opened: BlindKey, run: Path_ | None) -> Path | None:
    """Raises ResultsError if `run` is given and is none, and JobError if the test was made from another one."""
    if run is not None:
        path = user_path(run)
        if not is_run_of_test(Results.load(path), opened):
            raise _other_run(path, opened)
        return path if path.is_dir() else path.parent
    if opened.run is None:
        return None
    folder = Path(os.path.normpath((key if key.is_dir() else key.parent) / opened.run))
    found = (folder / "results.json").is_file() and is_run_of_test(Results.load(folder), opened)
    return folder if found else None


def _other_run(path: Path, opened: BlindKey) -> JobError:
    candidate = opened.models[Role.CANDIDATE]
    return JobError(
        f"The test was not made from {path}: "
        + (
            "it was made from files of answers."
            if opened.run is None
            else f"this run has other figures of {candidate!a}, or none."
        ),
        cure="Leave out --run to print the score only, or give the run that the test was made from.",
        slug="blind-other-run",
    )


def _check_free(folder: Path) -> None:
    taken = [name for name in (KEY, PAGE) if (folder / name).exists()]
    if taken:
        raise OutputError(
            f"{folder} already contains a blind test ({taken[0]}).",
            cure="Choose another folder with -o, or use --force to replace that test. Its votes are then lost.",
            slug="output-exists",
        )


def _as_list(votes: Path_ | Sequence[Path_]) -> list[Path_]:
    return [votes] if isinstance(votes, str | Path) else list(votes)


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"Cannot write {folder}: {error.strerror or error}.",
        cure="Use a folder that you may write to, on a disk with some free megabytes.",
        slug="output-unwritable",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
