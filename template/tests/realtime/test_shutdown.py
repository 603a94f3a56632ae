"""What connections get when the service stops."""

import signal
from contextlib import AsyncExitStack

import anyio
import httpx2

from tests.fixtures.caller import Caller
from tests.realtime.client import PATIENCE_SECONDS, open_client
from tests.realtime.conftest import ServeChannels, publish

SOCKETS = 40
MESSAGES = 50


async def test_all_are_told_to_come_back_after_what_was_on_its_way(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    async with serve_channels() as server, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(open_client(server, caller.headers))
            for _ in range(SOCKETS)
        ]
        for client in clients:
            await client.subscribe("news")
        await publish(server, "news", times=MESSAGES)
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            numbers = [(await client.receive())["data"]["number"] for _ in range(MESSAGES)]
            assert numbers == list(range(MESSAGES))
            assert (await client.closed())[0] == 1012
        assert await server.wait() == -signal.SIGTERM
        assert "Traceback" not in server.logs()
        assert "realtime_cut" not in server.logs()


async def test_a_stream_ends_as_well_when_a_second_signal_ends_the_drain(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    async with (
        serve_channels({"SHUTDOWN_DRAIN_SECONDS": "600"}) as server,
        httpx2.AsyncClient(base_url=server.url, headers=dict(caller.headers)) as client,
        client.stream("GET", "/api/v1/events", params={"channel": "news"}) as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == ":"
        server.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(PATIENCE_SECONDS):
            while "draining" not in server.logs():
                await anyio.sleep(0.02)
        server.process.send_signal(signal.SIGINT)
        with anyio.fail_after(PATIENCE_SECONDS):
            rest = [line async for line in lines]
        assert set(rest) <= {"", ":"}
        # uvicorn passes SIGINT on to Python as Ctrl+C, and ends with 0 then.
        assert await server.wait() in {0, -signal.SIGINT}
        assert "Traceback" not in server.logs()
