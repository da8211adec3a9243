"""The lab as a folder: whole or absent, and used again when it is the one that was asked for."""

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

LAB_VERSION = 1
"""To be raised when a change of code moves the weights: a lab of another version is not used again."""

RECORD = "lab.json"


def build_lab(
    folder: Path, *, seed: int = 0, say: Callable[[str], None], progress: bool = True, force: bool = False
) -> Lab:
    """Trains the lab into `folder`, or finds it there.

    The same seed gives the same weights on the same machine, Python and torch. Nothing is written to `folder` before
    all is done.

    Args:
        folder: absent, empty, or a lab.
        seed: of the first weights and of the order of the text.
        say: gets a plain sentence for each step.
        progress: a bar on stderr while a model trains, if stderr is a terminal.
        force: replace a lab that another seed or version made, with all that lies in its folder.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        JobError: this Python came without its sources, so there is no text to train on.
    """
    return build_by(Recipe(), folder, seed=seed, say=say, progress=progress, force=force)


def build_by(
    recipe: Recipe, folder: Path, *, seed: int, say: Callable[[str], None], progress: bool, force: bool = False
) -> Lab:
    """`build_lab` of any size."""
    target = Path(folder).resolve()
    if found := _found(target, seed, recipe):
        say(f"Using the lab in {folder}, trained earlier with seed {seed}.")
        return found
    _check_free(target, force)
    limit_openmp_spinning()
    with silence_logging():  # PEFT imports every quantiser there is, and some talk
        from deltarank.demo.build import build

    with _whole_or_nothing(target) as partial:
        lab = build(partial, recipe, seed=seed, say=say, progress=progress)
        _write_record(lab, recipe)
    return dataclasses.replace(lab, folder=target)


def _found(target: Path, seed: int, recipe: Recipe) -> Lab | None:
    """The lab of this seed, version and recipe, if it lies there with every file it was made with."""
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
            f"{target} exists and is not a lab.",
            cure="Give -o a folder that does not exist yet.",
            slug="output-exists",
        )
    if not force:
        raise OutputError(
            f"{target} holds a lab that another seed or version of deltarank made, or one that lacks files.",
            cure="Give -o another folder, or --force to replace everything in this one.",
            slug="output-exists",
        )


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end, or goes."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, target)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}.",
            cure="Give -o a folder on a disk with 60 MB to spare, where you may write.",
            slug="output-unwritable",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
