"""A service whose Postgres fails over to a standby; test_standby.py copies this into it."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import asyncpg
import httpx2
import pytest
from devtools.postgresql import PostgresServer
from tests.fixtures.migrated import migrate
from tests.fixtures.server import Serve

ORDER = {
    "customer_email": "ada@example.com",
    "lines": [{"sku": "TEA-250", "quantity": 1, "unit_price": "12.50"}],
}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A migrated server, and another that repeats what it writes."""
    primary, standby = (
        # As throwaway, a server writes too little for another to follow.
        PostgresServer(tmp_path / name, throwaway=False)
        for name in ("primary", "standby")
    )
    try:
        server = primary.start()
        migrate(server.url())
        connection = f"host=127.0.0.1 port={server.port} user=postgres password={server.password}"
        program = str(primary._programs / "pg_basebackup")
        standby.data.mkdir(mode=0o700)
        if primary._user:
            os.chown(standby.data, primary._user.uid, primary._user.gid)
        subprocess.run(
            [program, "-D", str(standby.data), "-d", connection, "-R", "-c", "fast", "--no-sync"],
            check=True,
            **primary._identity(),
        )
        shutil.copyfile(tmp_path / "primary" / "password", tmp_path / "standby" / "password")
        standby.start()
        yield primary, standby
    finally:
        for each in (standby, primary):
            each.stop()
            each.remove()


async def test_a_standby_is_an_outage_until_it_takes_writes(
    pair: tuple[PostgresServer, PostgresServer], serve: Serve
) -> None:
    primary, standby = pair
    first, second = (f"127.0.0.1:{each._port}" for each in (primary, standby))
    password = (primary._folder / "password").read_text()
    both = f"postgresql://postgres:{password}@{second},{first}/postgres"
    env = {"DATABASE_URL": both, "HEALTH_CACHE_SECONDS": "0"}
    async with (
        serve(env=env) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=60) as client,
    ):

        async def place() -> httpx2.Response:
            return await client.post("/api/v1/orders", json=ORDER)

        # Of the two it finds the one that takes writes.
        placed = await place()
        assert placed.status_code == 201
        ours = await asyncpg.connect(f"postgresql://postgres:{password}@{second}/postgres")
        with anyio.fail_after(60):
            while not await ours.fetchval("SELECT count(*) FROM orders"):
                await asyncio.sleep(0.02)

        await asyncio.to_thread(primary.kill)
        for answer in [await place(), await place(), await client.get("/api/v1/orders")]:
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert (await client.get("/health/ready")).status_code == 503

        assert await ours.fetchval("SELECT pg_promote()")
        await ours.close()
        with anyio.fail_after(60):
            while (await client.get("/health/ready")).status_code != 200:
                await asyncio.sleep(0.05)
        assert (await place()).status_code == 201
        listed = (await client.get("/api/v1/orders")).json()["items"]
        # What was acknowledged before is there.
        assert placed.json()["id"] in {order["id"] for order in listed}
