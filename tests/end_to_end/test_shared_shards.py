"""A file that both checkpoints hold is known to be identical: read once, with the numbers of reading both."""

import shutil
from pathlib import Path

import pytest
from streamed_models import SHARED, weights, write, write_sharing_pair

import deltarank
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.results import Outcome, Results


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_sharing_pair(tmp_path_factory.mktemp("pair"))


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
