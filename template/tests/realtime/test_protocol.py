"""What is said on a WebSocket, to clients that behave and to those that do not."""

import json

import anyio
import anyio.lowlevel
import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.core.test_handshake import UPGRADE
from tests.fixtures.caller import Caller
from tests.fixtures.server import ServedProcess
from tests.realtime.client import PATIENCE_SECONDS, Client, open_client
from tests.realtime.conftest import ServeChannels, publish

ORIGIN = "https://app.example.com"
LIMITS = {
    "REALTIME_MAX_SUBSCRIPTIONS": "5",
    "REALTIME_MAX_FRAME_BYTES": "1000",
    "REALTIME_MESSAGES_PER_SECOND": "10",
}


async def test_clients_that_behave_hear_what_they_asked_for_and_mistakes_are_answered(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    async with serve_channels(env={"ALLOWED_ORIGINS": ORIGIN}) as server:
        await _a_client_hears_of_what_it_has_subscribed_to(server, caller)
        await _events_of_any_length_arrive_in_order(server, caller)
        await _a_wrong_frame_is_answered_and_the_connection_goes_on(server, caller)
        await _named_origins_may_connect(server, caller)


async def _a_client_hears_of_what_it_has_subscribed_to(
    server: ServedProcess, caller: Caller
) -> None:
    async with open_client(server, caller.headers) as client:
        assert await client.ask(type="ping") == {"type": "pong"}
        await client.subscribe("news")
        await client.subscribe("letters")
        await client.subscribe("news")
        await publish(server, "ticker")
        await publish(server, "letters", to="somebody-else")
        await publish(server, "letters", to=caller.id)
        letter = await client.receive()
        await publish(server, "news", times=2)
        news = [await client.receive() for _ in range(2)]
        answer = await client.ask(type="unsubscribe", channel="news")
        assert answer == {"type": "unsubscribed", "channel": "news"}
        await publish(server, "news")
        assert await client.ask(type="ping") == {"type": "pong"}
        # What a transaction publishes arrives if and when it commits.
        await client.subscribe("ticker")
        async with httpx2.AsyncClient(base_url=server.url) as http:
            await http.post("/tests/commit/ticker", params={"fails": True})
            await http.post("/tests/commit/ticker")
        committed = await client.receive()
        assert await client.ask(type="ping") == {"type": "pong"}
    data = {"text": "x", "number": 0}
    assert letter == {"type": "event", "channel": "letters", "event": "note", "data": data}
    assert [frame["data"]["number"] for frame in news] == [0, 1]
    assert committed["data"]["text"] == "committed"


async def _events_of_any_length_arrive_in_order(server: ServedProcess, caller: Caller) -> None:
    lengths = [1, 100, 200, 60_000, 70_000]
    async with (
        open_client(server, caller.headers) as client,
        open_client(server, caller.headers, compression=None) as other,
    ):
        for each in (client, other):
            await each.subscribe("news")
        for length in lengths:
            await publish(server, "news", length=length)
        for each in (client, other):
            assert each.raw.protocol.extensions == []
            texts = [(await each.receive())["data"]["text"] for _ in lengths]
            assert [len(text) for text in texts] == lengths


WRONG_FRAMES = [
    ("{", "invalid-message"),
    ("[1, 2]", "invalid-message"),
    ("null", "invalid-message"),
    ("[" * 900, "invalid-message"),
    ('{"channel": "news"}', "invalid-message"),
    ('{"type": "subscribe"}', "invalid-message"),
    ('{"type": "subscribe", "channel": 1}', "invalid-message"),
    ('{"type": "subscribe", "channel": ""}', "invalid-message"),
    ('{"type": "ping", "extra": true}', "invalid-message"),
    ('{"type": "publish", "channel": "news"}', "unknown-type"),
    ('{"type": "subscribe", "channel": "nowhere"}', "unknown-channel"),
    ('{"type": "subscribe", "channel": "$access"}', "unknown-channel"),
    ('{"type": "subscribe", "channel": "secrets"}', "forbidden"),
]


async def _a_wrong_frame_is_answered_and_the_connection_goes_on(
    server: ServedProcess, caller: Caller
) -> None:
    async with open_client(server, caller.headers) as client:
        for text, code in WRONG_FRAMES:
            await client.raw.send(text)
            answer = await client.receive()
            assert (answer["type"], answer["code"]) == ("error", code), text
            assert answer["detail"]
            assert set(answer) == {"type", "code", "detail"}
        assert await client.ask(type="ping") == {"type": "pong"}
        # Nothing that clients do can fill the log.
        assert "invalid" not in server.logs()


async def _named_origins_may_connect(server: ServedProcess, caller: Caller) -> None:
    async with open_client(server, caller.headers, origin=ORIGIN) as client:
        assert await client.ask(type="ping") == {"type": "pong"}


async def test_whoever_breaks_the_rules_is_closed_and_nobody_else(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    async with (
        serve_channels(env=LIMITS) as server,
        open_client(server, caller.headers) as witness,
    ):
        await witness.subscribe("news")

        async def ending(
            *frames: str | bytes, origin: str | None = None, text: bool | None = None
        ) -> int:
            # The flow of a client that does not look at its answers; it reads all the same.
            async with open_client(server, caller.headers, origin=origin) as client:
                code: list[int] = []
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_note_end, client, code)
                    for frame in frames:
                        if client.raw.close_code is not None or code:
                            break
                        try:
                            await client.raw.send(frame, text=text)
                        except ConnectionClosed:
                            break
                        # Sending alone would not let it read.
                        await anyio.lowlevel.checkpoint()
            return code[0]

        def subscriptions(names: list[str]) -> list[str]:
            return [json.dumps({"type": "subscribe", "channel": name}) for name in names]

        assert await ending(*subscriptions([f"many-{number}" for number in range(6)])) == 1008
        assert await ending(*subscriptions([f"no-{number}" for number in range(10_000)])) == 1008
        assert await ending(*['{"type": "ping"}'] * 10_000) == 1008
        assert await ending(*["{"] * 10_000) == 1008
        assert await ending("x" * 1001) == 1009
        assert await ending("x" * 10_000_000) == 1009
        assert await ending(b"\x00\x01") == 1003
        assert await ending(b"\xff", text=True) == 1007
        assert await ending(origin="https://elsewhere.example") == 1008
        # Our own pages may.
        async with open_client(server, caller.headers, origin=server.url) as client:
            assert await client.ask(type="ping") == {"type": "pong"}

        await publish(server, "news")
        assert (await witness.receive())["event"] == "note"
        logs = server.logs()
        assert "Traceback" not in logs
        assert "websocket_lost" in logs
        # Two or three for each connection, and those of its start.
        assert len(logs.splitlines()) < 60


async def _note_end(client: Client, code: list[int]) -> None:
    code.append((await client.closed())[0])


async def test_there_is_room_for_so_many_connections_and_no_more(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    env = {"REALTIME_MAX_CONNECTIONS": "2", "TRUSTED_HOSTS": "127.0.0.1"}
    async with (
        serve_channels(env=env) as server,
        open_client(server, caller.headers) as client,
    ):
        async with open_client(server, caller.headers):
            with pytest.raises(InvalidStatus) as refused:
                async with open_client(server, caller.headers):
                    pass
            response = refused.value.response
            assert response.status_code == 503
            assert response.headers["content-type"] == "application/problem+json"
            assert response.headers["retry-after"]
            assert json.loads(response.body)["status"] == 503
        with anyio.fail_after(PATIENCE_SECONDS):
            # The server learns of the end a moment after the client.
            while not await _is_admitted(server, caller):
                await anyio.sleep(0.02)
        # Or a page could have its own name resolved to this address, and be of the same origin.
        async with httpx2.AsyncClient(base_url=server.url) as http:
            headers = {**UPGRADE, **caller.headers, "Host": "evil.example"}
            assert (await http.get("/api/v1/ws", headers=headers)).status_code == 400
        assert await client.ask(type="ping") == {"type": "pong"}


async def _is_admitted(server: ServedProcess, caller: Caller) -> bool:
    try:
        async with open_client(server, caller.headers):
            return True
    except InvalidStatus:
        return False


async def test_who_does_not_answer_pings_is_closed(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    async with serve_channels(env={"REALTIME_HEARTBEAT_SECONDS": "1"}) as server:
        stream = await anyio.connect_tcp("127.0.0.1", httpx2.URL(server.url).port or 80)
        headers = {**UPGRADE, "Host": "127.0.0.1", **caller.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        async with stream, open_client(server, caller.headers) as lively:
            await stream.send(f"GET /api/v1/ws HTTP/1.1\r\n{lines}\r\n".encode())
            received = b""
            with anyio.fail_after(PATIENCE_SECONDS):
                async for chunk in stream:
                    received += chunk
            assert received.startswith(b"HTTP/1.1 101 ")
            # The last frame: 1011, keepalive ping timeout.
            assert (1011).to_bytes(2, "big") in received
            assert await lively.ask(type="ping") == {"type": "pong"}
        # The lively one has said good-bye.
        assert server.logs().count("websocket_lost") == 1
