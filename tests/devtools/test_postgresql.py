"""The embedded Postgres: shared while it is used, gone when nobody uses it, however they end."""

import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import asyncpg  # type: ignore[import-untyped]
import pytest

from devtools import postgresql_binaries
from devtools.postgresql import PostgresServer, Server
from devtools.postgresql_binaries import PostgresNotFoundError, find_programs
from devtools.postgresql_sharing import shared_server
from devtools.sharing import has_keeper

_PROJECT = Path(__file__).parents[2]
_USER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from devtools.postgresql_sharing import shared_server

    with shared_server(Path(sys.argv[1]), throwaway=True) as server:
        print(server.port, flush=True)
        sys.stdin.read()
""")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "server"


@contextmanager
def user_of(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the server until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", _USER, str(folder)],
        cwd=_PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout
    return int(process.stdout.readline())


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


async def answer(server: Server, statement: str) -> object:
    connection = await asyncpg.connect(server.url())
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_processes_share_one_server_and_it_survives_the_one_that_started_it(
    folder: Path,
) -> None:
    with user_of(folder) as first:
        port = port_of(first)
        with shared_server(folder, throwaway=True) as server:
            assert server.port == port
            first.kill()
            first.wait()
            await anyio.sleep(0.5)
            assert await answer(server, "SELECT 1") == 1
    wait_until(lambda: not has_keeper(folder))


def test_a_killed_user_leaves_nothing_behind(folder: Path) -> None:
    with user_of(folder) as only:
        port = port_of(only)
        only.send_signal(signal.SIGKILL)
    wait_until(lambda: not has_keeper(folder))
    assert not PostgresServer(folder, throwaway=True).data.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_a_wrong_password_is_refused(folder: Path) -> None:
    with shared_server(folder, throwaway=True) as server:
        assert (folder / "password").stat().st_mode & 0o077 == 0
        with pytest.raises(asyncpg.InvalidPasswordError):
            await answer(Server(server.port, "wrong"), "SELECT 1")


async def test_data_for_development_outlives_the_server(folder: Path) -> None:
    with shared_server(folder, throwaway=False) as server:
        await answer(server, "CREATE TABLE kept AS SELECT 42 AS value")
        assert await answer(server, "SHOW fsync") == "on"
    wait_until(lambda: not has_keeper(folder))

    with shared_server(folder, throwaway=False) as again:
        assert await answer(again, "SELECT value FROM kept") == 42
        assert again == server
    wait_until(lambda: not has_keeper(folder))
    PostgresServer(folder, throwaway=False).remove()


async def test_a_killed_server_can_be_started_again_on_its_port(
    private_server: PostgresServer,
) -> None:
    server = private_server.start()
    private_server.kill()
    assert not private_server.is_running()
    with pytest.raises(OSError, match=r"refused|failed"):
        await answer(server, "SELECT 1")

    assert private_server.start() == server
    assert await answer(server, "SELECT 1") == 1


def test_without_any_postgres_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_binaries, "_wheel_folder", lambda: None)
    monkeypatch.setattr(postgresql_binaries, "_machine_folders", list)

    with pytest.raises(PostgresNotFoundError, match="TEST_DATABASE_URL"):
        find_programs(None)


def test_a_server_that_cannot_start_shows_its_log(folder: Path) -> None:
    server = PostgresServer(folder, throwaway=True)
    server.start()
    server.stop()
    (server.data / "postgresql.conf").write_text("shared_buffers = nonsense")

    with pytest.raises(RuntimeError, match="nonsense"):
        server.start()
    server.remove()
