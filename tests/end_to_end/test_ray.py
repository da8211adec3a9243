"""`--ray`: the numbers of a run without it, whatever is killed meanwhile, and what is wrong with a cluster."""

import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
import torch
from fleet_models import lines_in, numbers, threads, write_adapter, write_larger, write_models

import deltarank
from commands import RunCommand
from deltarank.errors import JobError, UsageError
from deltarank.results import Fleet
from pair_of_outputs import make_models, measure, outputs_of

RANKS = [2, 8]


def test_without_ray_there_is_one_clear_error(command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = command("compare", "base", "finetune", "--ray")

    assert (done.code, done.out) == (1, "")
    assert "deltarank: Ray is not installed.\n" in done.err
    assert "pip install 'deltarank[ray]'" in done.err


def test_the_name_of_a_model_is_no_address(command: RunCommand) -> None:
    done = command("compare", "--ray", "base", "finetune", "other")

    assert done.code == 2
    assert "deltarank: 'base' is not the address of a Ray cluster.\n" in done.err


def needs_ray(test: Callable[..., None]) -> Callable[..., None]:
    lacks = importlib.util.find_spec("ray") is None
    return pytest.mark.slow(pytest.mark.skipif(lacks, reason="ray is not installed")(test))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = write_models(tmp_path_factory.mktemp("models"))
    write_adapter(home / "ft" / "adapter", rank=4)
    return home


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_larger(tmp_path_factory.mktemp("larger"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, of one core each."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


@pytest.fixture
def each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices are tasks of their own."""
    monkeypatch.setattr("deltarank.ray_pool.bundles.SMALL_BYTES", 0)


# A cluster that cannot be used ---------------------------------------------------------------------------------


@needs_ray
def test_no_cluster_at_that_address() -> None:
    with pytest.raises(JobError, match=r"127\.0\.0\.1:1 does not answer") as refused, deltarank.on_ray("127.0.0.1:1"):
        pass
    with pytest.raises(UsageError, match=r"'ray://head' is not the address") as address, deltarank.on_ray("ray://head"):
        pass
    assert (refused.value.slug, address.value.slug) == ("no-ray-cluster", "bad-ray-address")


@needs_ray
def test_a_cluster_of_another_ray(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray compares its own version and Python's in one place."""
    monkeypatch.setattr("ray.__version__", "2.0.0")
    with (
        pytest.raises(JobError, match=r"Ray: [\d.]+ Python: .* Ray: 2\.0\.0 ") as other,
        deltarank.on_ray(cluster.address),
    ):
        pass
    assert other.value.slug == "ray-versions"


# What follows shares one connection ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def connected(cluster: Any) -> Iterator[Any]:
    with deltarank.on_ray(cluster.address):
        yield cluster


@pytest.fixture(scope="module")
def alone(larger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fleet of `larger` without Ray."""
    return local_fleet(larger, tmp_path_factory.mktemp("alone"))


def local_fleet(home: Path, folder: Path, **options: Any) -> Path:
    """In a process without a connection."""
    Context().run(deltarank.fleet, home / "base", [home / "ft"], output=folder, ranks=RANKS, force=True, **options)
    return folder


def assert_equal(one: Path, other: Path) -> None:
    names = [each.run for each in Fleet.load(one).finetunes]
    assert names == [each.run for each in Fleet.load(other).finetunes]
    for name in names:
        assert numbers(one / str(name)) == numbers(other / str(name))
        sketch = f"{name}/sketch.json"
        assert (one / sketch).read_bytes() == (other / sketch).read_bytes()


@needs_ray
def test_two_nodes_measure_as_one_process(models: Path, tmp_path: Path, connected: Any, each_alone: None) -> None:
    options: dict[str, Any] = {"adapter_rank": 4, "server": "peft"}
    fleet = deltarank.fleet(models / "base", [models / "ft"], output=tmp_path / "ray", ranks=RANKS, **options)
    for workers in (1, 2, 4):
        with threads(workers):
            local_fleet(models, tmp_path / str(workers), **options)
        assert_equal(tmp_path / "ray", tmp_path / str(workers))
    adapters = [str(each.adapter) for each in fleet.finetunes if each.adapter]

    assert len(adapters) >= 6
    for adapter in adapters:
        weights = Path(adapter) / "adapter_model.safetensors"
        assert (tmp_path / "ray" / weights).read_bytes() == (tmp_path / "1" / weights).read_bytes()


@needs_ray
def test_the_base_is_read_once_by_the_cluster(larger: Path, tmp_path: Path, connected: Any, alone: Path) -> None:
    fleet = deltarank.fleet(larger / "base", [larger / "ft"], output=tmp_path / "ray", ranks=RANKS)

    assert_equal(tmp_path / "ray", alone)
    assert fleet.settings["base_bytes_read"] <= 1.02 * fleet.settings["base_bytes"]


@needs_ray
def test_one_pair(larger: Path, tmp_path: Path, connected: Any, each_alone: None) -> None:
    pair = (larger / "base", larger / "ft" / "a")
    deltarank.compare(*pair, output=tmp_path / "compare", ranks=RANKS)
    deltarank.extract(*pair, output=tmp_path / "extract", rank=4)
    Context().run(deltarank.compare, *pair, output=tmp_path / "compare alone", ranks=RANKS)
    Context().run(deltarank.extract, *pair, output=tmp_path / "extract alone", rank=4)

    assert numbers(tmp_path / "compare") == numbers(tmp_path / "compare alone")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "extract" / weights).read_bytes() == (tmp_path / "extract alone" / weights).read_bytes()


@needs_ray
def test_the_decomposition_of_outputs(tmp_path: Path, connected: Any, each_alone: None) -> None:
    make_models(tmp_path)
    found = outputs_of(measure(tmp_path, output=tmp_path / "ray"))
    alone = outputs_of(Context().run(measure, tmp_path, output=tmp_path / "alone"))

    assert [each.logits for each in found.candidates] == [each.logits for each in alone.candidates]


# Killed --------------------------------------------------------------------------------------------------------


class Once(deltarank.ProgressListener):
    """Does something once, after so many matrices."""

    def __init__(self, matrices: int, action: Callable[[], None]) -> None:
        self.left, self.action = matrices, action

    def finished(self, name: str, seconds_left: float, share_done: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()


def worker_processes() -> list[int]:
    """The processes that run tasks of ours, or wait for them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:  # it has ended
            continue
        if command.startswith((b"ray::run_task", b"ray::IDLE\0", b"ray::IDLE ")) or command == b"ray::IDLE":
            found.append(int(path.parent.name))
    return found


@needs_ray
def test_a_worker_that_is_killed(larger: Path, tmp_path: Path, connected: Any, alone: Path, each_alone: None) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.extend(worker_processes())
        for process in killed:
            os.kill(process, signal.SIGKILL)

    given = (larger / "base", [larger / "ft"])
    deltarank.fleet(*given, output=tmp_path / "ray", ranks=RANKS, progress=Once(4, kill))

    assert killed
    assert_equal(tmp_path / "ray", alone)


@needs_ray
def test_a_node_that_is_killed(larger: Path, tmp_path: Path, connected: Any, alone: Path, each_alone: None) -> None:
    node = connected.worker_nodes.copy().pop()

    def kill() -> None:
        connected.remove_node(node, allow_graceful=False)

    given = (larger / "base", [larger / "ft"])
    try:
        deltarank.fleet(*given, output=tmp_path / "ray", ranks=RANKS, progress=Once(4, kill))
    finally:
        connected.add_node(num_cpus=1)

    assert_equal(tmp_path / "ray", alone)


DRIVER = """
import sys
import deltarank
from deltarank.ray_pool import bundles

bundles.SMALL_BYTES = 0
address, base, finetunes, output = sys.argv[1:]
with deltarank.on_ray(address):
    deltarank.fleet(base, [finetunes], ranks=[2, 8], output=output)
"""


@needs_ray
def test_a_driver_that_is_killed(larger: Path, tmp_path: Path, connected: Any, alone: Path, each_alone: None) -> None:
    words = (connected.address, larger / "base", larger / "ft", tmp_path / "ray")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *map(str, words)])
    until = time.monotonic() + 120
    while lines_in(tmp_path / "ray") < 5 and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    driver.kill()
    driver.wait()
    kept = lines_in(tmp_path / "ray")
    deltarank.fleet(larger / "base", [larger / "ft"], output=tmp_path / "ray", ranks=RANKS)

    assert kept >= 5
    assert_equal(tmp_path / "ray", alone)


# A cluster that lacks something --------------------------------------------------------------------------------


@needs_ray
def test_a_worker_without_the_files(larger: Path, tmp_path: Path, connected: Any) -> None:
    """The base is gone once it was opened here: this process can still read it, as one that has the disk."""
    base = shutil.copytree(larger / "base", tmp_path / "base")

    class Renames(deltarank.ProgressListener):
        def began(self, name: str) -> None:
            if base.exists():
                base.rename(tmp_path / "elsewhere")

    with pytest.raises(JobError, match=r"^The Ray worker on \S+ does not have the files of this run: ") as lacking:
        deltarank.compare(base, larger / "ft" / "a", output=tmp_path / "run", ranks=RANKS, progress=Renames())
    assert lacking.value.slug == "ray-files"
    assert str(base) in lacking.value.message
    (tmp_path / "elsewhere").rename(base)
    run = deltarank.compare(base, larger / "ft" / "a", output=tmp_path / "run", ranks=RANKS)
    assert all(matrix.has_losses for matrix in run.matrices)


@needs_ray
def test_other_versions_on_a_worker(larger: Path, tmp_path: Path, connected: Any, each_alone: None) -> None:
    other = tmp_path / "other"
    (other / "deltarank-0.0.1.dist-info").mkdir(parents=True)
    (other / "deltarank-0.0.1.dist-info" / "METADATA").write_text("Name: deltarank\nVersion: 0.0.1\n")
    (other / "sitecustomize.py").write_text(
        "import platform\nplatform.python_version_tuple = lambda: ('3', '10', '1')\n"
    )
    import ray

    others = [ray.remote(lambda: time.sleep(300)).remote() for _ in range(2)]
    while ray.available_resources().get("CPU"):
        time.sleep(0.05)
    node = connected.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{other}:{os.environ.get('PYTHONPATH', '')}"})
    try:
        with pytest.raises(JobError, match=r"^The Ray worker on \S+ has Python 3\.10 instead of ") as differs:
            deltarank.compare(larger / "base", larger / "ft" / "a", ranks=RANKS)
    finally:
        for waiting in others:
            ray.cancel(waiting, force=True)
        connected.remove_node(node)
    assert differs.value.slug == "ray-versions"
    assert f"deltarank 0.0.1 instead of {deltarank.__version__}" in differs.value.message


@needs_ray
def test_what_no_machine_can_run(larger: Path, connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltarank.ray_pool.pool import RayPool

    with pytest.raises(JobError, match="has no GPU") as no_gpu:
        list(RayPool(list, workers=1, device=torch.device("cuda")).results([]))
    monkeypatch.setattr("deltarank.ray_pool.pool.FIXED_MEMORY", 1e14)
    with pytest.raises(JobError, match="has no machine with a core and 100 TB of memory") as small:
        deltarank.compare(larger / "base", larger / "ft" / "a", ranks=RANKS)
    with pytest.raises(UsageError, match="'cuda:1' cannot be used on Ray") as device:
        RayPool(list, workers=1, device=torch.device("cuda:1"))
    assert (no_gpu.value.slug, small.value.slug, device.value.slug) == ("ray-too-small", "ray-too-small", "bad-device")


@needs_ray
def test_a_full_disk_midway(larger: Path, tmp_path: Path, connected: Any, alone: Path, each_alone: None) -> None:
    given = (larger / "base", [larger / "ft"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        size = max(path.stat().st_size for path in (tmp_path / "ray").rglob("*.jsonl"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    try:
        with pytest.raises(deltarank.DeltarankError, match="Cannot write ") as full:
            deltarank.fleet(*given, output=tmp_path / "ray", ranks=RANKS, progress=Once(4, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    deltarank.fleet(*given, output=tmp_path / "ray", ranks=RANKS)

    assert "repeat the same command to resume" in full.value.cure
    assert_equal(tmp_path / "ray", alone)


# From the command line -----------------------------------------------------------------------------------------


@needs_ray
def test_a_cluster_that_is_started_here_leaves_nothing(larger: Path, tmp_path: Path) -> None:
    """Neither words of Ray's on the terminal nor files of Ray's."""
    words = ["compare", larger / "base", larger / "ft" / "a", "--ranks", "2,8", "--no-report", "-o", tmp_path / "run"]
    temporary = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # the path of a socket must be short
    done = subprocess.run(
        [sys.executable, "-W", "default", "-m", "deltarank", *map(str, words), "--ray"],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    first, *rest = done.stderr.splitlines()
    assert first == "Starting Ray on this machine."
    assert [line for line in rest if "ray" in line.lower() or "warning" in line.lower()] == []
    temporary.rmdir()  # fails unless it is empty
