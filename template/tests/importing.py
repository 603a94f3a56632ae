"""Imports the whole service again, while whatever it does to the machine is refused."""

import os
import pkgutil
import sys
import tempfile
import time
from importlib import import_module
from typing import Any

from prometheus_client import REGISTRY

import app

_ACTIONS = {"shutil", "socket", "subprocess", "tempfile"}
_CHANGES = {"os.chmod", "os.mkdir", "os.remove", "os.rename", "os.system"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


# No hook can be removed, and what coverage has measured is written afterwards.
_watching = True


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    writes = event == "open" and arguments[2] & _WRITING
    if writes or event in _CHANGES or event.partition(".")[0] in _ACTIONS:
        raise RuntimeError(event, arguments)


def _look_at_the_clock() -> float:
    # Each metric notes when it was made.
    if sys._getframe(1).f_globals["__name__"] != "prometheus_client.metrics":
        raise RuntimeError("a look at the clock")
    return 0


def main() -> None:
    """Import each module twice: what the libraries do when they are imported is theirs."""
    global _watching  # noqa: PLW0603
    names = [module.name for module in pkgutil.walk_packages(app.__path__, "app.")]
    for name in names:
        import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "app"]:
        del sys.modules[name]
    # Where each metric of the process has its place, once.
    for collector in [*REGISTRY._collector_to_names]:
        REGISTRY.unregister(collector)
    # Which is searched for only once.
    tempfile.tempdir = None
    # Python writes what it has compiled.
    sys.dont_write_bytecode = True
    sys.addaudithook(_watch)
    time.time = time.monotonic = _look_at_the_clock
    for name in ("app", *names):
        import_module(name)
    _watching = False


if __name__ == "__main__":
    main()
