"""Freed memory is kept: fewer page faults, where it is ours to say and where there is room."""

import subprocess
import sys
from pathlib import Path

import pytest

from curate.runtime import allocator

CHURN = """
import ctypes, resource, sys
from curate.runtime.allocator import keep_freed_memory, keep_large_blocks
keep_freed_memory()
kept = keep_large_blocks(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(9):
    block = libc.malloc(48 * 2**20)
    ctypes.memset(block, 1, 48 * 2**20)
    libc.free(block)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def churned(needed: int, **settings: str) -> tuple[str, int]:
    """Whether large blocks are kept by a process that needs so much, and its page faults."""
    command = [sys.executable, "-c", CHURN, str(needed)]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as glibc does")
def test_large_blocks_fault_once_where_there_is_room_for_them() -> None:
    here = {"PYTHONPATH": str(Path(allocator.__file__).parents[2])}
    (kept, few), (plain, many) = churned(2**20, **here), churned(2**60, **here)
    assert (kept, plain) == ("True", "False")
    pages = 48 * 2**20 / 4096
    assert many - few > 7 * pages  # of nine blocks, eight are the first again
    assert churned(2**20, MALLOC_TRIM_THRESHOLD_="131072", **here)[0] == "False"  # the user's own


def test_room_is_what_the_machine_and_the_group_of_processes_leave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(allocator, "GROUP", tmp_path)
    free = allocator.available()
    assert free > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert allocator.available() > 2**20
    (tmp_path / "memory.max").write_text("12000\n")
    assert allocator.available() == 7000
