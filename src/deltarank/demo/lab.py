"""The folder of the trained models (the lab): complete or absent, and reused if seed and version are the same."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltarank.demo.recipe import Recipe
from deltarank.demo.trained_lab import Lab, Training
from deltarank.errors import OutputError
from deltarank.system import limit_openmp_spinning, replace_folder, silence_logging

LAB_VERSION = 2
"""Raise this when a change of the code changes the weights: a lab of another version is not reused."""

RECORD = "lab.json"


def build_lab(
    folder: Path, *, seed: int = 0, say: Callable[[str], None], progress: bool = True, force: bool = False
) -> Lab:
    """Train the models of the lab into `folder`, or reuse those that are there.

    The same seed gives the same weights on the same machine, Python and torch. Nothing is written to `folder` until
    all models are trained.

    Args:
        folder: absent, empty, or a lab.
        seed: of the initial weights and of the order of the text.
        say: called with a sentence for each step.
        progress: a bar on stderr while a model trains, if stderr is a terminal.
        force: replace a lab of another seed or version, and everything else in its folder.

    Raises:
        OutputError: the folder contains something else, or cannot be written.
        JobError: this Python has no library sources, so there is no text to train on.
    """
    return build_by(Recipe(), folder, seed=seed, say=say, progress=progress, force=force)


def build_by(
    recipe: Recipe, folder: Path, *, seed: int, say: Callable[[str], None], progress: bool, force: bool = False
) -> Lab:
    """`build_lab` with a recipe of any size."""
    target = Path(folder).resolve()
    if found := _found(target, seed, recipe):
        say(f"Reusing the models in {folder}, which were trained earlier with seed {seed}.")
        return found
    _check_free(target, force)
    limit_openmp_spinning()
    with silence_logging():  # PEFT imports every quantisation library that is installed, and some log
        from deltarank.demo.build import build

    with _whole_or_nothing(target) as partial:
        lab = build(partial, recipe, seed=seed, say=say, progress=progress)
        _write_record(lab, recipe)
    return dataclasses.replace(lab, folder=target)


def _found(target: Path, seed: int, recipe: Recipe) -> Lab | None:
    """The lab in `target`, if it has this seed, version and recipe, and all its files."""
    try:
        record = json.loads((target / RECORD).read_text(encoding="utf-8"))
        if record["made_by"] != _made_by(seed, recipe) or record["files"] != _files(target, record["files"]):
            return None
        return Lab(
            folder=target,
            seed=seed,
            parameters=record["parameters"],
            seconds=record["seconds"],
            trainings=tuple(Training(**training) for training in record["trainings"]),
            losses=record["losses"],
            reused=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _made_by(seed: int, recipe: Recipe) -> dict[str, Any]:
    return {"lab_version": LAB_VERSION, "seed": seed, "recipe": dataclasses.asdict(recipe)}


def _files(folder: Path, names: Any) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in names}


def _write_record(lab: Lab, recipe: Recipe) -> None:
    names = sorted(path.relative_to(lab.folder).as_posix() for path in lab.folder.rglob("*") if path.is_file())
    record = {
        "made_by": _made_by(lab.seed, recipe),
        "parameters": lab.parameters,
        "seconds": lab.seconds,
        "trainings": [dataclasses.asdict(training) for training in lab.trainings],
        "losses": lab.losses,
        "files": _files(lab.folder, names),
    }
    (lab.folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _check_free(target: Path, force: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / RECORD).is_file():
        raise OutputError(
            f"{target} exists and does not contain models of the demo.",
            cure="Use -o with a folder that does not exist yet.",
            slug="output-exists",
        )
    if not force:
        raise OutputError(
            f"{target} contains models of another seed or version of deltarank, or files are missing.",
            cure="Choose another folder with -o, or use --force to replace everything in this one.",
            slug="output-exists",
        )


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """A folder beside `target`, which replaces it at the end, or is deleted after a failure."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, target)
    except OSError as error:
        raise OutputError(
            f"Cannot write {target}: {error.strerror or error}.",
            cure="Use -o with a folder that you may write to, on a disk with 60 MB of free space.",
            slug="output-unwritable",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
