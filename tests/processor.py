"""Processor time of this process and of all that it has started, servers included."""

import ctypes
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

_SET_CHILD_SUBREAPER = 36
_PATIENCE_SECONDS = 5.0


def processor_seconds() -> float:
    """What this process and its ended children have used so far, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def count_orphans() -> None:
    """From now on, what a child leaves behind becomes a child of this process (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """The processes that this one is to wait for."""
    pids = set[int]()
    for file in Path("/proc/self/task").glob("*/children"):
        # A thread may end between the listing and the reading.
        with suppress(FileNotFoundError, ProcessLookupError):
            pids.update(map(int, file.read_text().split()))
    return pids


def collect(orphans: set[int]) -> None:
    """Let those of some adopted children that have ended count, and be gone."""
    for orphan in orphans:
        with suppress(ChildProcessError):
            os.waitpid(orphan, os.WNOHANG)


def collect_all(known: set[int]) -> None:
    """Give children besides those that are `known` a while to end, and count them."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (orphans := children() - known) and time.monotonic() < deadline:
        collect(orphans)
        time.sleep(0.02)
