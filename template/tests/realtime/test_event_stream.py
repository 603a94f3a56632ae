"""Channels as Server-Sent Events, for clients that only speak HTTP."""

import json
from typing import Any

import anyio
import httpx2
import pytest

from tests.fixtures.caller import Caller
from tests.fixtures.tracing import ENDPOINT
from tests.realtime.client import PATIENCE_SECONDS
from tests.realtime.conftest import ServeChannels, publish, statistics


async def test_a_stream_carries_the_frames_of_its_channel(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    async with (
        serve_channels(env={"REALTIME_HEARTBEAT_SECONDS": "0.2"}) as server,
        httpx2.AsyncClient(base_url=server.url, headers=dict(caller.headers)) as client,
    ):
        parameters = {"channel": "news"}
        async with client.stream("GET", "/api/v1/events", params=parameters) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.aiter_lines()
            with anyio.fail_after(PATIENCE_SECONDS):
                # The first comment says that it listens.
                assert await anext(lines) == ":"
                await publish(server, "ticker")
                await publish(server, "news", times=2)
                data: list[dict[str, Any]] = []
                while len(data) < 2:
                    line = await anext(lines)
                    if line.startswith("data: "):
                        data.append(json.loads(line.removeprefix("data: ")))
                comments = [await anext(lines) for _ in range(4)]
        assert [frame["data"]["number"] for frame in data] == [0, 1]
        assert data[0]["channel"] == "news"
        assert ":" in comments
        for channel, status in (("nowhere", 404), ("secrets", 403)):
            answer = await client.get("/api/v1/events", params={"channel": channel})
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"
        assert "Traceback" not in server.logs()


# Traces put something between the server and the stream, also of requests that are not recorded.
@pytest.mark.parametrize(
    "traces",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_TRACES_SAMPLER": "always_off"}],
)
async def test_a_stream_that_is_not_read_is_cut(
    serve_channels: ServeChannels, caller: Caller, traces: dict[str, str]
) -> None:
    env = {
        "REALTIME_SEND_TIMEOUT_SECONDS": "0.5",
        "REALTIME_MAX_CONNECTIONS": "1",
        **traces,
    }
    async with (
        serve_channels(env=env) as server,
        await anyio.connect_tcp("127.0.0.1", httpx2.URL(server.url).port or 80) as stream,
    ):
        headers = {"Host": "127.0.0.1", **caller.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await stream.send(f"GET /api/v1/events?channel=news HTTP/1.1\r\n{lines}\r\n".encode())
        assert (await stream.receive()).startswith(b"HTTP/1.1 200 ")
        await publish(server, "news", length=250_000, times=60)
        with anyio.fail_after(PATIENCE_SECONDS):
            while not await _has_room(server.url, caller):
                await anyio.sleep(0.1)
            # Nobody is there any more who would take this, or what was sent before.
            with pytest.raises(anyio.BrokenResourceError):
                while True:
                    await stream.send(b"x")
                    await anyio.sleep(0.02)
        assert (await statistics(server))["too_slow"] == 1
        assert "Traceback" not in server.logs()
        assert "without completing response" not in server.logs()


async def _has_room(url: str, caller: Caller) -> bool:
    async with (
        httpx2.AsyncClient(base_url=url, headers=dict(caller.headers)) as client,
        client.stream("GET", "/api/v1/events", params={"channel": "news"}) as response,
    ):
        return response.status_code == 200
