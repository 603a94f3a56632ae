"""A service behind a real PgBouncer in transaction mode; test_pgbouncer.py copies this into it."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import asyncpg
import httpx2
import pytest
from tests.fixtures.migrated import migrate
from tests.fixtures.process import reserve_port
from tests.fixtures.server import Serve

# Few enough for every client to be given another one again and again.
SERVER_CONNECTIONS = 4
ORDER = {
    "customer_email": "ada@example.com",
    "lines": [{"sku": "TEA-250", "quantity": 1, "unit_price": "12.50"}],
}


@pytest.fixture
def pgbouncer_url(scratch_database_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database through a pooler, without any option."""
    database = urlsplit(scratch_database_url)
    port = reserve_port()
    executable = shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    assert executable
    configuration = tmp_path / "pgbouncer.ini"
    configuration.write_text(
        f"""[databases]
* = host=127.0.0.1 port={database.port} user=postgres password={database.password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {SERVER_CONNECTIONS}
server_round_robin = 1
"""
    )
    command = [executable, str(configuration)]
    if os.getuid() == 0:
        # It refuses to run as root, and reads its file before it is somebody else.
        command += ["-u", "nobody"]
    log = (tmp_path / "pgbouncer.log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        yield f"postgresql://anybody:hunter2-and-more@127.0.0.1:{port}{database.path}"
        process.terminate()


@pytest.fixture
async def plain(pgbouncer_url: str) -> AsyncIterator[list[asyncpg.Connection]]:
    """Clients of the pooler that change nothing, as many as it has connections."""
    async with AsyncExitStack() as stack:
        clients = []
        with anyio.fail_after(20):
            while len(clients) < SERVER_CONNECTIONS:
                try:
                    client = await asyncpg.connect(pgbouncer_url, statement_cache_size=0)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    stack.push_async_callback(client.close)
                    clients.append(client)
        yield clients


async def on_each_connection(clients: list[asyncpg.Connection], query: str) -> list[object]:
    """The answers of all of the pooler's connections, each held by a transaction meanwhile."""
    async with AsyncExitStack() as stack:
        for client in clients:
            await stack.enter_async_context(client.transaction())
        return [await client.fetchval(query) for client in clients]


async def test_everything_works_through_a_pooler_and_leaves_nothing_behind(
    plain: list[asyncpg.Connection], pgbouncer_url: str, serve: Serve
) -> None:
    url = f"{pgbouncer_url}?pgbouncer=true"
    await asyncio.to_thread(migrate, url)

    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    assert await plain[0].fetchval(held) == 0

    async with (
        serve(env={"DATABASE_URL": url, "HEALTH_CACHE_SECONDS": "0"}) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        assert (await client.get("/health/ready")).status_code == 200
        statuses: list[int] = []

        async def place_and_list() -> None:
            for _ in range(5):
                placed = await client.post("/api/v1/orders", json=ORDER)
                listed = await client.get("/api/v1/orders")
                statuses.extend((placed.status_code, listed.status_code))

        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(place_and_list())
        assert sorted(statuses) == [200] * 50 + [201] * 50
        assert (await client.get("/health/ready")).status_code == 200

        names = await on_each_connection(
            plain, "SELECT count(*) FROM pg_prepared_statements WHERE name <> ''"
        )
        timeouts = await on_each_connection(plain, "SHOW statement_timeout")
    assert names == [0] * SERVER_CONNECTIONS
    assert timeouts == ["0"] * SERVER_CONNECTIONS
