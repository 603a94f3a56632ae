"""Limits on connections and their end, under a real server."""

import resource
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest
import uvicorn
from anyio.abc import ByteStream
from fastapi import APIRouter
from structlog.testing import capture_logs

from app.core import connections
from app.core.connections import affordable, limit_connections
from app.core.http_stack import HttpSettings
from tests.core.listening import dial, listening, read_all
from tests.core.stack import build_app

router = APIRouter()
REQUEST = b"GET /it HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSING = REQUEST.replace(b"Host", b"Connection: close\r\nHost")
UPGRADE = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"


class Switches:
    """What a test has the service wait for, and say of itself."""

    draining = False
    entered: anyio.Event
    released: anyio.Event


@router.api_route("/it", methods=["GET", "POST"])
@router.get("/health/live")
async def it() -> str:
    """Answer."""
    return "it"


@router.get("/wait")
async def wait() -> str:
    """Answer when the test says so."""
    Switches.entered.set()
    await Switches.released.wait()
    return "it"


@pytest.fixture
async def server() -> AsyncIterator[uvicorn.Server]:
    Switches.draining = False
    Switches.entered, Switches.released = anyio.Event(), anyio.Event()
    async with listening(build_app(router)) as server:
        # As the lifespan does it.
        limit_connections(
            HttpSettings(MAX_CONNECTIONS=2, KEEP_ALIVE_SECONDS=0.2), lambda: Switches.draining
        )
        yield server
        Switches.released.set()


async def ask(stream: ByteStream, request: bytes = REQUEST) -> bytes:
    """The answer to one request, on a connection that stays open."""
    await stream.send(request)
    received = b""
    with anyio.fail_after(30):
        while not received.endswith(b'"it"'):
            received += await stream.receive()
    return received


async def test_past_the_limit_whoever_asks_nothing_makes_room(
    server: uvicorn.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_IDLE_SECONDS", 0)
    with capture_logs() as logs:
        async with await dial(server) as first, await dial(server) as second:
            await ask(second)
            async with await dial(server) as third:
                assert await ask(third)
                assert await read_all(first) == b""
            # Not a line for each.
            async with await dial(server) as fourth:
                assert await ask(fourth)
    [line] = [line for line in logs if line["event"] == "connection_limit_reached"]
    assert (line["limit"], line["log_level"]) == (2, "warning")


async def test_where_all_are_in_use_a_further_one_is_told_so_and_probes_are_answered(
    server: uvicorn.Server,
) -> None:
    async with await dial(server) as first, await dial(server) as second:
        for stream in (first, second):
            Switches.entered = anyio.Event()
            await stream.send(REQUEST.replace(b"/it", b"/wait"))
            with anyio.fail_after(30):
                await Switches.entered.wait()
        async with (
            await dial(server) as third,
            await dial(server) as fourth,
            await dial(server) as silent,
        ):
            await third.send(REQUEST)
            answer = await read_all(third)
            await fourth.send(CLOSING.replace(b"/it", b"/health/live"))
            probed = await read_all(fourth)
            assert await read_all(silent) == b""
        Switches.released.set()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer
    assert probed.startswith(b"HTTP/1.1 200 ")


async def test_a_connection_stays_as_long_as_is_set(server: uvicorn.Server) -> None:
    async with await dial(server) as stream:
        began = anyio.current_time()
        await ask(stream)
        assert await read_all(stream) == b""
    # uvicorn's own are 5 seconds.
    assert 0.2 <= anyio.current_time() - began < 4


async def test_a_response_ends_its_connection_while_the_service_drains(
    server: uvicorn.Server,
) -> None:
    async with await dial(server) as stream:
        assert b"connection: close" not in await ask(stream)
        Switches.draining = True
        await stream.send(REQUEST)
        answer = await read_all(stream)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


@pytest.mark.parametrize("has_asked", [False, True])
async def test_a_request_that_was_on_its_way_at_the_shutdown_is_answered(
    server: uvicorn.Server, has_asked: bool
) -> None:
    async with await dial(server) as stream:
        if has_asked:
            await ask(stream)
        while not server.server_state.connections:
            await anyio.lowlevel.checkpoint()
        connection = next(iter(server.server_state.connections))
        # What the server does when it has stopped accepting.
        connection.shutdown()
        await stream.send(REQUEST)
        answer = await read_all(stream)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


async def test_a_connection_without_a_request_does_not_hold_up_the_shutdown(
    server: uvicorn.Server,
) -> None:
    async with await dial(server) as stream:
        await ask(stream)
        next(iter(server.server_state.connections)).shutdown()
        assert await read_all(stream) == b""


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"POST /it HTTP/1.1", b"200"),
        (b"POST /it HTTP/1.1\r\nContent-Length: 4", b"200"),
        (b"PUT /it HTTP/1.1", b"405"),
        (b"POST /nothing HTTP/1.1", b"404"),
        (b"OPTIONS /nothing HTTP/1.1", b"404"),
    ],
)
async def test_what_is_no_handshake_is_answered_as_if_it_did_not_ask_for_one(
    server: uvicorn.Server, request_line: bytes, status: bytes
) -> None:
    body = b"body" if b"Length" in request_line else b""
    async with await dial(server) as stream:
        await stream.send(request_line + b"\r\n" + UPGRADE + b"\r\n" + body)
        with anyio.fail_after(30):
            assert (await stream.receive()).startswith(b"HTTP/1.1 " + status)


def test_a_quarter_of_the_open_files_is_left_for_everything_else() -> None:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert affordable(HttpSettings(MAX_CONNECTIONS=1)) == 1
    assert affordable(HttpSettings(MAX_CONNECTIONS=1_000_000)) == min(1_000_000, files * 3 // 4)
