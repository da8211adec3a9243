"""The numbers do not depend on how a model is fetched: streamed, downloaded, local."""

import importlib.util
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamed_models import CHANGED, SHARED, CommandProcess, numbers_in, weights, write, write_sharing_pair

from commands import LineProcess
from deltarank.checkpoints import open_checkpoint
from deltarank.results import Fleet
from hub import FakeHub, Fault, client_environment

MATRICES = 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    base = weights(0)
    tuned = {
        name: w + (0.01 * change).to(w.dtype)
        for (name, w), change in zip(base.items(), weights(1).values(), strict=True)
    }
    return write(root / "base", base, 2), write(root / "tuned", tuned, 3)


@pytest.fixture(scope="module")
def hub(pair: tuple[Path, Path]) -> Iterator[FakeHub]:
    """The pair by two names: what one test downloads, another does not find in the cache."""
    with FakeHub() as hub:
        for user in ("org", "other"):
            hub.add(f"{user}/base", pair[0])
            hub.add(f"{user}/tuned", pair[1])
        yield hub


@pytest.fixture(autouse=True)
def _at_full_speed(hub: FakeHub) -> Iterator[None]:
    hub.forget()
    yield
    hub.delay = 0.0


@pytest.fixture(scope="module")
def commands(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandProcess]:
    with CommandProcess(hub, tmp_path_factory.mktemp("commands")) as commands:
        yield commands


def test_streamed_downloaded_and_local_runs_give_equal_numbers(
    hub: FakeHub, commands: CommandProcess, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    ids, more = ("org/base", "org/tuned"), ("--ranks", "4,16")
    local, streamed, downloaded = (tmp_path / way for way in ("local", "streamed", "downloaded"))
    commands.run("compare", *pair, "-o", local, *more)
    commands.run("compare", *ids, "--stream", "-o", streamed, *more)
    assert "without saving it" in commands.said
    assert commands.weights_in_cache("org") == []
    asked = sum(part.nbytes for part in hub.sent)
    commands.run("compare", *ids, "--download", "-o", downloaded, *more)
    assert len(commands.weights_in_cache("org")) == 5
    assert hub.secrets == []
    needed = sum(path.stat().st_size for folder in pair for path in folder.glob("*.safetensors"))
    assert asked <= 1.4 * needed  # three matrices are read twice, to probe whether this can be the base
    numbers = numbers_in(local)
    assert [matrix["outcome"] for matrix in numbers[:MATRICES]] == ["measured"] * MATRICES
    assert numbers_in(streamed) == numbers
    assert numbers_in(downloaded) == numbers
    results = json.loads((streamed / "results.json").read_text())
    assert results["base"]["ref"] == "org/base"
    assert results["base"]["revision"] == hub.repos["org/base"].commit("main")


def test_extract_and_verify_stream_as_well(commands: CommandProcess, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The adapters are equal, byte for byte. A dry run downloads nothing."""
    ids = ("other/base", "other/tuned")
    local, streamed = tmp_path / "local", tmp_path / "streamed"
    commands.run("extract", *pair, "-r", "16", "-o", local)
    commands.run("extract", *ids, "--stream", "-r", "16", "-o", streamed)
    commands.run("verify", *ids, local, "--stream")
    commands.run("compare", *ids, "--dry-run")
    assert commands.weights_in_cache("other") == []
    weights = [folder / "adapter_model.safetensors" for folder in (local, streamed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_streamed_finetune_s_copy_is_not_asked_for(hub: FakeHub, commands: CommandProcess, tmp_path: Path) -> None:
    """On the Hub equal hashes say it. Of the finetune's copy only the header goes over the line."""
    local, streamed = tmp_path / "local", tmp_path / "streamed"
    (base, tuned), other = write_sharing_pair(tmp_path), "shared.safetensors"
    index = tuned / "model.safetensors.index.json"
    for shard, name in ((SHARED, other), (CHANGED, "changed.safetensors")):
        (tuned / shard).rename(tuned / name)
        index.write_text(index.read_text().replace(shard, name))
    more, ids = ("--ranks", "4,16", "-q"), ("sharing/base", "sharing/tuned")
    for name, folder in zip(ids, (base, tuned), strict=True):
        hub.add(name, folder)
    commands.run("compare", base, tuned, "-o", local, *more)
    commands.run("compare", *ids, "--stream", "-o", streamed, *more)
    asked = sum(part.nbytes for part in hub.sent if part.file in (SHARED, other))
    size = (base / SHARED).stat().st_size

    assert numbers_in(streamed) == numbers_in(local)
    assert size <= asked < 1.5 * size  # one of the two whole, and what comes with the header of the other


@pytest.mark.parametrize("fetch", ["--stream", "--download"])
def test_a_fleet_on_the_hub(
    hub: FakeHub, commands: CommandProcess, pair: tuple[Path, Path], tmp_path: Path, fetch: str
) -> None:
    """With the numbers of local files; a model that is not there is a row."""
    listed, more = tmp_path / "list.txt", ("--ranks", "4,16", "--no-report")
    listed.write_text(f"org/tuned\nother/tuned@main  # the same\norg/missing\n{pair[1]}\n")
    commands.run("fleet", "org/base", "--list", listed, fetch, "-o", tmp_path / "fleet", *more)
    commands.run("compare", *pair, "-o", tmp_path / "one", *more)
    fleet = Fleet.load(tmp_path / "fleet")

    assert [(each.name, each.is_measured) for each in fleet.finetunes] == [
        ("org--tuned", True),
        ("other--tuned--main", True),
        ("org--missing", False),
        ("tuned", True),
    ]
    assert "no model of that name on the Hub" in str(fleet.failed[0].reason)
    assert fleet.base.revision == hub.repos["org/base"].commit("main")
    for each in fleet.measured:
        assert numbers_in(tmp_path / "fleet" / str(each.run)) == numbers_in(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_workers_on_ray_stream_by_themselves(
    hub: FakeHub, commands: CommandProcess, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    more = ("--ranks", "4,16", "--no-report")
    downloaded_before = commands.weights_in_cache("other")
    commands.run("compare", "other/base", "other/tuned", "--stream", "-o", tmp_path / "ray", *more, "--ray")
    assert commands.weights_in_cache("other") == downloaded_before
    commands.run("compare", *pair, "-o", tmp_path / "local", *more)

    assert numbers_in(tmp_path / "ray") == numbers_in(tmp_path / "local")


@pytest.mark.slow
def test_ctrl_c_ends_a_stalled_transfer_at_once(hub: FakeHub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deltarank", "compare", "org/base", "org/tuned", "--stream", "-o", "run"]
    environment = client_environment(hub, tmp_path / "home", HF_HUB_DOWNLOAD_TIMEOUT="60", HF_HUB_DISABLE_XET="1")
    hub.faults = [Fault("stall", after=5, times=99, seconds=20)]
    with subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        try:
            while len(hub.sent) < 7:
                assert child.poll() is None
                time.sleep(0.05)
            time.sleep(0.5)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=30)
        finally:
            child.kill()
    assert child.returncode == 130, said
    assert "repeat the same command to resume" in said
    assert time.monotonic() - began < 10


_KILLER = """
import json, os, signal, sys, time, traceback
import huggingface_hub, torch
from huggingface_hub import HfApi, snapshot_download
from deltarank import compare

def begin(output):
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        try:
            compare("org/base", "org/tuned", fetch="stream", output=output, ranks=[4, 16])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

def lines_in(path):
    try:
        return open(path, "rb").read().count(b"\\n")
    except OSError:
        return 0

for line in sys.stdin:
    output, seconds = json.loads(line)
    began, pid = time.monotonic(), begin(output)
    if seconds is not None:
        run_folder = os.path.join(output, "matrices.jsonl")
        while seconds < 0 and time.monotonic() - began < 20 and lines_in(run_folder) < -seconds:
            time.sleep(0.002)
        time.sleep(max(seconds, 0))
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print("@" + json.dumps([status, time.monotonic() - began]), flush=True)
"""


class Killer(LineProcess):
    """Runs comparisons in processes of their own, and kills them on request."""

    def run(self, output: Path, *, kill_after: float | None = None) -> tuple[int, float]:
        """The exit code, negative for a signal, and the seconds that it took.

        `kill_after` so many seconds, or, negative, when so many matrices are finished.
        """
        code, seconds = self.request([str(output), kill_after])
        return code, seconds


def finished_in(folder: Path) -> list[str]:
    """Matrices that a killed run left behind; a line that was being written does not count."""
    path = folder / "matrices.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [record["name"] for record in map(json.loads, lines) if "losses" in record]


def places_of(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Where each tensor lies: file, first byte, last."""
    with open_checkpoint(folder) as checkpoint:
        return {t.name: (t.file, t.start, t.start + t.nbytes) for t in checkpoint.tensors.values()}


def read_twice(hub: FakeHub, pair: tuple[Path, Path], names: list[str]) -> list[str]:
    """Of these tensors, those of which anything was asked for, but for what comes along with a header."""
    places = [(name, place) for folder in pair for name, place in places_of(folder).items() if name in names]
    return [
        name
        for name, (file, first, last) in places
        for part in hub.sent
        if part.file == file and part.start > 0 and part.start < last and part.end > first
    ]


@pytest.mark.parametrize(
    "kills", [pytest.param(1, id="a moment"), pytest.param(20, id="20 moments", marks=pytest.mark.slow)]
)
def test_a_streamed_run_that_was_killed_is_resumed(
    kills: int, hub: FakeHub, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """With the numbers of one that was not, and without reading again what was finished."""
    chance = random.Random(kills)
    began_again = 0
    hub.delay = 0.01
    with Killer(_KILLER, client_environment(hub, tmp_path / "home")) as killer:
        killer.run(tmp_path / "first")  # fills the cache with what is small
        code, seconds = killer.run(tmp_path / "whole")
        assert code == 0
        for number in range(kills):
            output = tmp_path / str(number)
            # By the clock most runs have finished nothing or all: every other one is killed in between.
            killer.run(output, kill_after=-chance.randint(1, 3) if number % 2 else chance.uniform(0.2, 1.1) * seconds)
            finished = finished_in(output)
            began_again += 0 < len(finished) < MATRICES
            hub.forget()
            assert killer.run(output)[0] == 0
            assert read_twice(hub, pair, finished) == []
            assert numbers_in(output) == numbers_in(tmp_path / "whole")
    assert began_again or kills < 10
