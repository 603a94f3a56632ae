"""A Postgres server as a child process, without Docker: its data, its start and its end."""

import ctypes
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.postgresql_binaries import find_programs, machine_folder, reachable, server_user

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.02
# Losing a test database is no loss; waiting for the disk is.
_THROWAWAY = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=300")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Server:
    """A server that answers on this machine's loopback interface."""

    port: int
    password: str

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases, for a superuser."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"


class PostgresServer:
    """A server process of our own.

    Args:
        folder: Where its password, its log and its data are; used again when they are there. The
            data is elsewhere when we are root and the server's user cannot reach the folder.
        throwaway: Trade durability for speed.
        port: The port to listen on if it is free.
    """

    def __init__(self, folder: Path, *, throwaway: bool, port: int | None = None) -> None:
        self._folder = folder
        self._throwaway = throwaway
        self._port = port
        self._user = server_user()
        self._process: subprocess.Popen[bytes] | None = None
        self.data = self._data_folder()
        self.log = folder / "postgresql.log"

    def start(self) -> Server:
        """Start it, with an empty cluster the first time, and wait until it accepts connections.

        Started again it has the same port and data.

        Raises:
            PostgresNotFoundError: there are no programs to run; says what to do.
            RuntimeError: it did not start; has the end of its log.
        """
        self._programs = find_programs(self._user)
        password = self._initialize()
        # Between choosing a free port and using it, another process may take it.
        for attempts_left in (2, 1, 0):
            self._port = _free_port(self._port)
            try:
                self._launch(self._port)
                break
            except RuntimeError:
                if not attempts_left:
                    raise
                self._port = None
        return Server(self._port or 0, password)

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it in good order: transactions are rolled back, clients are disconnected."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGQUIT)

    def remove(self) -> None:
        """Delete its data."""
        shutil.rmtree(self.data, ignore_errors=True)

    def _data_folder(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._user and not reachable(self._folder):
            name = hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:16]
            return machine_folder() / f"data-{name}"
        return self._folder / "data"

    def _initialize(self) -> str:
        password_file = self._folder / "password"
        if (self.data / "PG_VERSION").exists() and password_file.exists():
            self._refuse_another_version()
            return password_file.read_text()
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        password = secrets.token_urlsafe(24)
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        try:
            self._run_initdb(password)
        except BaseException:
            shutil.rmtree(self.data, ignore_errors=True)
            raise
        return password

    def _run_initdb(self, password: str) -> None:
        # A copy, because the server's user may not be able to read our files.
        password_file = self.data.with_suffix(".password")
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        if self._user:
            for path in (self.data, password_file):
                os.chown(path, self._user.uid, self._user.gid)
        command = [
            str(self._programs / "initdb"),
            f"--pgdata={self.data}",
            # Anybody on this machine can reach the port.
            "--auth=scram-sha-256",
            f"--pwfile={password_file}",
            "--username=postgres",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]
        try:
            result = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_START_SECONDS,
                **self._identity(),
            )
        finally:
            password_file.unlink()
        if result.returncode:
            raise RuntimeError("\n".join(["initdb failed:", result.stdout]))

    def _refuse_another_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        command = [str(self._programs / "postgres"), "--version"]
        ours = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        if ours.split()[2].partition(".")[0] != made_by:
            message = (
                f"{self._folder} holds data of Postgres {made_by}, this is {ours}. Delete the "
                "folder to start afresh."
            )
            raise RuntimeError(message)

    def _launch(self, port: int) -> None:
        command = [str(self._programs / "postgres"), "-D", str(self.data), "-p", str(port)]
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories="]
        for setting in (*settings, *(_THROWAWAY if self._throwaway else ())):
            command += ["-c", setting]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal is for the service, which needs its database to finish.
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
                **self._identity(),
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._accepts_connections():
            if not self.is_running() or time.monotonic() > deadline:
                self.kill()
                lines = self.log.read_text(errors="replace").splitlines()[-20:]
                raise RuntimeError("\n".join(["Postgres did not start:", *lines]))
            time.sleep(_POLL_SECONDS)

    def _accepts_connections(self) -> bool:
        # As pg_ctl does it: the first line is the process, the eighth how far it is.
        with suppress(OSError, IndexError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            running = self._process is not None and lines[0] == str(self._process.pid)
            return running and lines[7].strip() == "ready"
        return False

    def _end(self, signal_number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _identity(self) -> dict[str, Any]:
        options: dict[str, Any] = {"env": {**os.environ, "LC_ALL": "C", "TZ": "UTC"}}
        if self._user:
            options.update(user=self._user.uid, group=self._user.gid, extra_groups=[], cwd="/")
        return options


def _free_port(wanted: int | None) -> int:
    for port in (wanted or 0, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            chosen: int = probe.getsockname()[1]
            return chosen
    raise RuntimeError("no port is free")


def _end_with_parent() -> None:
    # Nothing else ends the server when we are killed. After a change of user, hence not earlier.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
