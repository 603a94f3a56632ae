"""Heads of requests that are too long or never end, under a real server."""

from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import pytest
import uvicorn
from fastapi import APIRouter, Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.core.request_head import bounded
from tests.core.listening import dial, listening, read_all
from tests.core.stack import build_app

router = APIRouter()
REQUEST = b"GET /it HTTP/1.1\r\nHost: x\r\n"


@router.get("/it")
async def it() -> str:
    """Answer."""
    return "it"


@router.post("/it")
async def read_it(request: Request) -> str:
    """Read the body, and answer."""
    await request.body()
    return "it"


@pytest.fixture
async def server() -> AsyncIterator[uvicorn.Server]:
    async with listening(build_app(router), http=bounded(HttpToolsProtocol, 0.5)) as server:
        yield server


@pytest.mark.parametrize(
    "head",
    [
        REQUEST + b"a: b\r\n" * 13_000 + b"\r\n",
        REQUEST + b"a: " + b"b" * 5_000_000,
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["fields", "a value without end", "a target"],
)
async def test_a_long_head_is_refused_and_the_connection_closed(
    server: uvicorn.Server, head: bytes
) -> None:
    async with await dial(server) as stream:
        received = b""
        # The server may close while the rest of it is being sent.
        with anyio.move_on_after(10):
            with suppress(anyio.BrokenResourceError):
                await stream.send(head)
            received = await _read(stream)

    # The answer is lost where the rest of the head met a closed connection.
    assert received.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")) or not received


async def _read(stream: anyio.abc.ByteStream) -> bytes:
    try:
        return await read_all(stream)
    except anyio.BrokenResourceError:
        return b""


@pytest.mark.parametrize("begun", [b"", REQUEST], ids=["nothing", "half a head"])
async def test_a_head_that_does_not_come_ends_the_connection(
    server: uvicorn.Server, begun: bytes
) -> None:
    async with await dial(server) as stream:
        if begun:
            await stream.send(begun)
        with anyio.fail_after(20):
            assert await read_all(stream) == b""


async def test_an_empty_line_after_a_response_does_not_keep_the_connection(
    server: uvicorn.Server,
) -> None:
    async with await dial(server) as stream:
        await stream.send(REQUEST + b"\r\n")
        received = b""
        while b'"it"' not in received:
            received += await stream.receive()
        await stream.send(b"\r\n")
        with anyio.fail_after(20):
            assert await read_all(stream) == b""


async def test_heads_of_up_to_64_kib_and_bodies_of_any_size_pass(server: uvicorn.Server) -> None:
    head = REQUEST.replace(b"GET", b"POST") + b"a: " + b"b" * 60_000 + b"\r\n"
    async with await dial(server) as stream:
        for _ in range(2):
            await stream.send(head + b"Content-Length: 300000\r\n\r\n" + b"c" * 300_000)
            with anyio.fail_after(20):
                received = b""
                while b'"it"' not in received:
                    received += await stream.receive()
            assert received.startswith(b"HTTP/1.1 200")
