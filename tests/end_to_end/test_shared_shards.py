"""A file that both checkpoints hold is known to be identical: read once, with the numbers of reading both."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_stream_and_download import CommandProcess, numbers_in, weights, write

import deltarank
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.results import Outcome, Results
from hub import FakeHub

SHARED, CHANGED = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two shards, of which finetuning left the first as it was."""
    home = tmp_path_factory.mktemp("pair")
    base = write(home / "base", weights(0), 2)
    owners = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    tuned = {
        name: w if owners[name] == SHARED else (w + (0.02 * torch.ones_like(w))).to(w.dtype)
        for name, w in weights(0).items()
    }
    return base, write(home / "tuned", tuned, 2)


@pytest.fixture(scope="module")
def linked(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finetune with a link in the place of the file that it shares."""
    folder = shutil.copytree(pair[1], tmp_path_factory.mktemp("linked") / "tuned")
    (folder / SHARED).unlink()
    (folder / SHARED).symlink_to(pair[0] / SHARED)
    return folder


def plain(results: Results) -> list[object]:
    found = results.to_plain()
    return [[{**m, "seconds": None} for m in found["matrices"]], found["skipped"], found["totals"], found["verdict"]]


def test_the_numbers_are_those_of_reading_both(pair: tuple[Path, Path], linked: Path) -> None:
    """Norms of the base among them, so that totals keep their meaning."""
    read, known = (deltarank.compare(pair[0], tuned, ranks=[4, 16]) for tuned in (pair[1], linked))
    outcomes = {m.outcome for m in known.matrices}

    assert outcomes == {Outcome.IDENTICAL, Outcome.MEASURED}
    assert all(m.base_frobenius for m in known.matrices)
    assert plain(known) == plain(read)


def test_what_is_known_is_read_once(pair: tuple[Path, Path], linked: Path) -> None:
    read, known = (deltarank.plan(pair[0], tuned) for tuned in (pair[1], linked))
    with open_checkpoint(pair[0]) as base, open_checkpoint(linked) as tuned:
        pairing = pair_checkpoints(base, tuned)
        shared = [each for each in (*pairing.pairs, *pairing.summed) if each.finetune.file == SHARED]
        others = [each for each in (*pairing.pairs, *pairing.summed) if each.finetune.file != SHARED]

    assert shared
    assert others
    assert all(len(each.pieces) == 1 for each in shared)
    assert all(len(each.pieces) == 2 for each in others)
    assert read.read_bytes - known.read_bytes == sum(each.finetune.nbytes for each in shared)
    assert any("known to be the same on both sides" in line for line in known.lines())
    assert not any("known to be the same on both sides" in line for line in read.lines())


def test_a_shard_with_another_place_for_a_tensor_is_read(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Only the same bytes at the same place are the same tensor: names alone say nothing."""
    tuned = shutil.copytree(pair[1], tmp_path / "tuned")
    names = list(weights(0))
    swapped = weights(0) | {names[3]: weights(0)[names[3]].flip(0)}
    shutil.rmtree(tuned)
    results = deltarank.compare(pair[0], write(tuned, swapped, 2), ranks=[4])

    assert [m.name for m in results.matrices if m.outcome is Outcome.MEASURED] == [names[3]]


def test_a_streamed_finetune_s_copy_is_not_asked_for(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """On the Hub equal hashes say it. Of the finetune's copy only the header goes over the line."""
    local, streamed = tmp_path / "local", tmp_path / "streamed"
    tuned, other = shutil.copytree(pair[1], tmp_path / "tuned"), "shared.safetensors"
    index = tuned / "model.safetensors.index.json"
    for shard, name in ((SHARED, other), (CHANGED, "changed.safetensors")):
        (tuned / shard).rename(tuned / name)
        index.write_text(index.read_text().replace(shard, name))
    with FakeHub() as hub, CommandProcess(hub, tmp_path) as commands:
        hub.add("org/base", pair[0])
        hub.add("org/tuned", tuned)
        more, ids = ("--ranks", "4,16", "-q"), ("org/base", "org/tuned")
        commands.run("compare", pair[0], tuned, "-o", local, *more)
        commands.run("compare", *ids, "--stream", "-o", streamed, *more)
        asked = sum(part.nbytes for part in hub.sent if part.file in (SHARED, other))
    size = (pair[0] / SHARED).stat().st_size

    assert numbers_in(streamed) == numbers_in(local)
    assert size <= asked < 1.5 * size  # one of the two whole, and what comes with the header of the other
