"""One server for several processes: the first starts it, it ends after the last.

Each user holds a shared lock on a file, which the system takes back however the process ends. A
keeper process of its own watches that lock: no user has to outlive the others.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

_POLL_SECONDS = 0.05


class Address(Protocol):
    """Where a server answers."""

    @property
    def port(self) -> int:
        """Its port on the loopback interface."""


class ChildServer(Protocol):
    """A server process of the keeper's; it writes its password to the folder."""

    def start(self) -> Address: ...
    def is_running(self) -> bool: ...
    def stop(self) -> None: ...
    def remove(self) -> None: ...


class Create(Protocol):
    """Makes the server of a folder, at the port that it had before if that is free."""

    def __call__(self, folder: Path, *, throwaway: bool, port: int | None) -> ChildServer: ...


@contextmanager
def shared(module: str, folder: Path, *, throwaway: bool) -> Iterator[tuple[int, str]]:
    """Use the server of `folder`, starting it when nobody does yet; its port and password.

    Args:
        module: What keeps it when it is run; calls `keep`.
        folder: Where its files are.
        throwaway: Trade durability for speed and delete the data after the last user.

    Raises:
        RuntimeError: it did not start; says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users.lock").open("w") as users:
        with _locked(folder / "start.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            if not has_keeper(folder):
                _start_keeper(module, folder, throwaway=throwaway)
        yield int((folder / "port").read_text()), (folder / "password").read_text()


def keep(create: Create, not_found: type[Exception]) -> None:
    """Keep a server as the command line says, until nobody uses it any more.

    Args:
        create: Makes the server.
        not_found: What its start fails with when there is no program to run.
    """
    parser = argparse.ArgumentParser(description=keep.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--throwaway", action="store_true")
    arguments = parser.parse_args()
    try:
        _keep(create, arguments.folder, throwaway=arguments.throwaway)
    except (RuntimeError, not_found) as error:
        sys.exit(str(error))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def has_keeper(folder: Path) -> bool:
    """Whether somebody keeps the server of `folder`."""
    with (folder / "keeper.lock").open("w") as file:
        return not _try_lock(file)


def _start_keeper(module: str, folder: Path, *, throwaway: bool) -> None:
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    # Coverage would measure the keeper, and be asked for results when they have been collected.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE_"))}
    command = [sys.executable, "-m", module, str(folder.resolve())]
    with (folder / "keeper.log").open("w") as log:
        keeper = subprocess.Popen(
            [*command, *(["--throwaway"] if throwaway else [])],
            cwd=Path(__file__).parent.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Neither Ctrl-C nor the end of the terminal reaches it.
            start_new_session=True,
        )
    while not ready.exists():
        if keeper.poll() is not None:
            raise RuntimeError((folder / "keeper.log").read_text().strip())
        time.sleep(_POLL_SECONDS)
    # It may outlive us, so nobody waits for it; Popen would warn of that.
    keeper.returncode = 0


def _keep(create: Create, folder: Path, *, throwaway: bool) -> None:
    """Run the server until nobody uses it any more."""
    port_file = folder / "port"
    with ExitStack() as stack:
        # Opened now: the last user may delete the folder while the server still ends.
        keeper, start, users = (
            stack.enter_context((folder / f"{name}.lock").open("w"))
            for name in ("keeper", "start", "users")
        )
        fcntl.flock(keeper, fcntl.LOCK_EX)
        last_port = int(port_file.read_text()) if port_file.exists() else None
        server = create(folder, throwaway=throwaway, port=last_port)
        stack.callback(server.stop)
        port_file.write_text(str(server.start().port))
        (folder / "ready").touch()
        while server.is_running():
            time.sleep(_POLL_SECONDS)
            if not _try_lock(users):
                continue
            fcntl.flock(users, fcntl.LOCK_UN)
            # Whoever comes now waits until the server is gone, and starts another.
            fcntl.flock(start, fcntl.LOCK_EX)
            if _try_lock(users):
                server.stop()
                if throwaway:
                    server.remove()
                return
            fcntl.flock(start, fcntl.LOCK_UN)
