"""The metrics of several processes, each of which keeps its own in a file of one folder.

The files are memory that the processes share, so nothing is lost with a process that is killed.
"""

import re
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from app.core.processes import is_running

# Without types.
_File: Any = MmapedDict
_Collector: Any = MultiProcessCollector

_FILE = re.compile(r"(?P<kind>counter|histogram|gauge_live[a-z]*)_(?P<pid>[0-9]+)\.db")


def read_files(folder: str) -> bytes:
    """Add up what all processes have counted, those that have ended included.

    Args:
        folder: Where the files are; of no other machine's or container's processes, whose numbers
            would not be told apart.
    """
    # Not on Windows, where nobody sets the folder.
    from fcntl import LOCK_EX, flock  # noqa: PLC0415

    with (Path(folder) / "lock").open("w") as lock:
        # Who reads meanwhile would find a file's counts twice, or not at all.
        flock(lock, LOCK_EX)
        _fold(Path(folder))
        registry = CollectorRegistry()
        _Collector(registry, path=folder)
        return generate_latest(registry)


def _fold(folder: Path) -> None:
    """Keep one file for all processes that have ended, or each restart would add some."""
    for file in folder.glob("*.db"):
        name = _FILE.fullmatch(file.name)
        if name is None or is_running(int(name["pid"])):
            continue
        # Empty if the process was killed while it made the file.
        if file.stat().st_size and not name["kind"].startswith("gauge"):
            ended = _File(str(folder / f"{name['kind']}_ended.db"))
            for key, value, _, _ in _File.read_all_values_from_file(str(file)):
                ended.write_value(key, ended.read_value(key)[0] + value, 0)
            ended.close()
        file.unlink()
