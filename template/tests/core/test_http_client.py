"""The shared HTTP client against a server on a socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest
import structlog

from app.core.http_client import HttpClientSettings, open_http_client

SETTINGS = HttpClientSettings(
    HTTP_CLIENT_TIMEOUT_SECONDS=0.3,
    HTTP_CLIENT_CONNECT_TIMEOUT_SECONDS=0.3,
    HTTP_CLIENT_MAX_CONNECTIONS=2,
)


class Server:
    """Answers every request with the headers that it got, after `delay` seconds."""

    def __init__(self) -> None:
        self.url = ""
        self.delay = 0.0
        self.connections = 0
        self.requests = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.all_closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                await asyncio.sleep(self.delay)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(head) + head)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.discard(writer)
            if not self.open:
                self.all_closed.set()
            writer.close()


@asynccontextmanager
async def running() -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        listener.close()


async def test_connections_are_reused_and_closed_at_the_end() -> None:
    async with running() as server:
        async with open_http_client(SETTINGS) as client:
            for _ in range(5):
                assert (await client.get(server.url)).status_code == 200
            assert (server.connections, server.requests) == (1, 5)
            assert len(server.open) == 1
        async with asyncio.timeout(1):
            await server.all_closed.wait()


async def test_no_more_connections_are_opened_than_allowed() -> None:
    async with running() as server, open_http_client(SETTINGS) as client:
        server.delay = 0.02
        await asyncio.gather(*(client.get(server.url) for _ in range(10)))
        assert (server.connections, server.requests) == (2, 10)


async def test_a_slow_answer_raises_and_is_not_asked_for_again() -> None:
    async with running() as server, open_http_client(SETTINGS) as client:
        server.delay = 60
        with pytest.raises(httpx2.ReadTimeout):
            async with asyncio.timeout(2):
                await client.get(server.url)
        assert server.requests == 1


async def test_a_wait_for_a_free_connection_ends_too() -> None:
    async with running() as server, open_http_client(SETTINGS) as client:
        server.delay = 5
        answers = await asyncio.gather(
            *(client.get(server.url) for _ in range(3)), return_exceptions=True
        )
        assert sorted(type(answer).__name__ for answer in answers) == [
            "PoolTimeout",
            "ReadTimeout",
            "ReadTimeout",
        ]


async def test_the_request_id_goes_along() -> None:
    async with running() as server, open_http_client(SETTINGS) as client:
        assert "x-request-id" not in (await client.get(server.url)).text.lower()
        with structlog.contextvars.bound_contextvars(request_id="abc-123"):
            assert "X-Request-ID: abc-123\r\n" in (await client.get(server.url)).text
            own = await client.get(server.url, headers={"X-Request-ID": "own"})
        assert "X-Request-ID: own\r\n" in own.text
        assert "abc-123" not in own.text
