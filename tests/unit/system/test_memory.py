"""The memory that a process may use: the machine's, or less where its control group says so."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltarank.system import memory_limit

GROUPS = "sys/fs/cgroup"
UNLIMITED = 9223372036854771712  # what version 1 says where there is no limit


def system(root: Path, membership: str, limits: dict[str, str]) -> Path:
    for path, text in {"proc/self/cgroup": membership, **limits}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")
    return root


@pytest.fixture
def physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


V1 = "11:cpu,cpuacct:/x\n5:memory:/docker/abc\n0::/"


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        pytest.param("0::/a/b", {f"{GROUPS}/a/b/memory.max": "1000"}, 1000, id="v2"),
        pytest.param("0::/", {f"{GROUPS}/memory.max": "1000"}, 1000, id="v2, in a container"),
        pytest.param(
            "0::/a/b", {f"{GROUPS}/a/b/memory.max": "max", f"{GROUPS}/a/memory.max": "2000"}, 2000, id="v2, of a parent"
        ),
        pytest.param(
            "0::/a/b", {f"{GROUPS}/a/b/memory.max": "3000", f"{GROUPS}/a/memory.max": "2000"}, 2000, id="v2, the least"
        ),
        pytest.param(V1, {f"{GROUPS}/memory/docker/abc/memory.limit_in_bytes": "1000"}, 1000, id="v1"),
        pytest.param(V1, {f"{GROUPS}/memory/memory.limit_in_bytes": "1000"}, 1000, id="v1, the path of the host"),
    ],
)
def test_the_limit_of_a_control_group_counts(
    tmp_path: Path, membership: str, limits: dict[str, str], expected: int
) -> None:
    assert memory_limit(root=system(tmp_path, membership, limits)) == expected


@pytest.mark.parametrize(
    ("membership", "limits"),
    [
        ("0::/", {f"{GROUPS}/memory.max": "max"}),
        ("5:memory:/", {f"{GROUPS}/memory/memory.limit_in_bytes": str(UNLIMITED)}),
        ("5:cpu:/", {f"{GROUPS}/memory/memory.limit_in_bytes": "1000"}),
        ("", {}),
        ("nonsense", {f"{GROUPS}/memory.max": "words"}),
    ],
)
def test_without_a_limit_it_is_the_memory_of_the_machine(
    tmp_path: Path, membership: str, limits: dict[str, str], physical: int
) -> None:
    assert memory_limit(root=system(tmp_path, membership, limits)) == physical


def test_a_system_without_control_groups(tmp_path: Path, physical: int) -> None:
    assert memory_limit(root=tmp_path) == physical


COUNT_LARGE_BLOCKS = """
import ctypes
from deltarank.system import free_large_blocks_at_once

class MallInfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.mallinfo2.restype = ctypes.c_void_p, MallInfo
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
free_large_blocks_at_once()
libc.free(libc.malloc(30 << 20))
before = libc.mallinfo2().hblks
block = libc.malloc(2 << 20)
held = libc.mallinfo2().hblks
libc.free(block)
print(held - before, libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="a C library other than glibc 2.33 or later")
def test_a_large_block_has_memory_of_its_own_also_after_larger_ones_were_freed() -> None:
    """By default glibc puts 2 MB into its heap, and keeps them, once a block of 30 MB was freed.

    In a new process: what other tests freed may have room for the block.
    """
    done = subprocess.run([sys.executable, "-c", COUNT_LARGE_BLOCKS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]
