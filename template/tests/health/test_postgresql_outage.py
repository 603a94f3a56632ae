"""The service while its Postgres is gone, hangs, and is back."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import anyio
import httpx2
import pytest

from devtools.postgresql import PostgresServer
from tests.fixtures.server import Serve

APP = "tests.sample_service:create_app"
WORK = "/api/v1/sample/database"
# One second, the timeout, and what a busy machine needs beyond.
ENV = {"HEALTH_TIMEOUT_SECONDS": "1", "HEALTH_CACHE_SECONDS": "0.2"}
DEADLINE = 3.0
# For whom every probe lasts that long.
HURRIED = {"HEALTH_TIMEOUT_SECONDS": "0.3"}


async def timed(client: httpx2.AsyncClient, path: str) -> tuple[httpx2.Response, float]:
    start = time.monotonic()
    answer = await client.get(path)
    return answer, time.monotonic() - start


async def expect_outage(client: httpx2.AsyncClient) -> None:
    await anyio.sleep(0.3)
    for _ in range(3):
        answer, seconds = await timed(client, "/health/ready")
        assert answer.status_code == 503
        assert answer.json()["status"] == "unavailable"
        assert answer.json()["checks"]["database"] == "failed"
        assert seconds < DEADLINE
        answer, seconds = await timed(client, "/health/live")
        assert answer.status_code == 200
        assert seconds < 3


async def expect_recovery(client: httpx2.AsyncClient, seconds: float) -> None:
    with anyio.fail_after(seconds):
        while (await client.get("/health/ready")).status_code != 200:
            await anyio.sleep(0.1)
    assert (await client.get(WORK)).json() == 42


async def test_it_starts_without_a_database_and_notices_its_arrival_its_end_and_its_return(
    serve: Serve, private_server: PostgresServer
) -> None:
    url = (await asyncio.to_thread(private_server.start)).url()
    await asyncio.to_thread(private_server.stop)
    async with (
        serve(app=APP, env={**ENV, "DATABASE_URL": url}) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        await expect_outage(client)
        assert (await asyncio.to_thread(private_server.start)).url() == url
        await expect_recovery(client, 30)
        await asyncio.to_thread(private_server.kill)
        await expect_outage(client)
        answer = await client.get(WORK)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        await asyncio.to_thread(private_server.start)
        await expect_recovery(client, 30)
        assert server.logs().count("health_check_failed") == 2
        assert server.logs().count("health_check_recovered") == 2


class Network:
    """Stands between the service and Postgres, and can fall silent without closing anything."""

    def __init__(self, database_url: str) -> None:
        self._parts = urlsplit(database_url)
        self._passable = asyncio.Event()
        self._passable.set()
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Network"]:
        listener = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        credentials = self._parts.netloc.rpartition("@")[0]
        port = listener.sockets[0].getsockname()[1]
        self.url = urlunsplit(self._parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
        try:
            yield self
        finally:
            self.restore()
            listener.close()

    def cut(self) -> None:
        self._passable.clear()

    def restore(self) -> None:
        self._passable.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._parts.hostname, self._parts.port
        their_reader, their_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(self._pump(reader, their_writer), self._pump(their_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._passable.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.mark.filterwarnings("default::ResourceWarning")
async def test_a_database_that_no_longer_answers_is_noticed_within_the_deadline(
    serve: Serve, database_url: str
) -> None:
    async with (
        Network(database_url).running() as network,
        serve(app=APP, env={**ENV, **HURRIED, "DATABASE_URL": network.url}) as server,
        httpx2.AsyncClient(base_url=server.url, timeout=30) as client,
    ):
        await expect_recovery(client, 20)
        network.cut()
        await expect_outage(client)
        network.restore()
        await expect_recovery(client, 30)
