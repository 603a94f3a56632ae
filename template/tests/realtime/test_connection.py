"""A connection under a server that is not uvicorn: only what ASGI has words for."""

import asyncio
import runpy
import sys
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from starlette.types import Message
from starlette.websockets import WebSocket

from app.core.channels import Channel
from app.core.principal import ANONYMOUS
from app.realtime import server as server_module
from app.realtime.connection import Connection
from app.realtime.hub import Hub
from app.realtime.limits import RealtimeSettings
from app.realtime.server import ServerSide

NEWS = Channel("news", messages=())
PING = '{"type": "ping"}'


class Server:
    """Takes what is sent, as long as it is told to."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.received: asyncio.Queue[Message] = asyncio.Queue()
        self.received.put_nowait({"type": "websocket.connect"})
        self.takes = asyncio.Event()
        self.takes.set()
        self.before_receive: Callable[[], object] = lambda: None

    async def send(self, message: Message) -> None:
        await self.takes.wait()
        self.sent.append(message)
        if message["type"] == "websocket.close":
            self.received.put_nowait({"type": "websocket.disconnect", "code": message["code"]})

    def connect(self, hub: Hub, **settings: Any) -> Connection:
        # A function of its own: what this server's own methods belong to is no protocol of uvicorn.
        async def receive() -> Message:
            self.before_receive()
            return await self.received.get()

        websocket = WebSocket({"type": "websocket", "headers": []}, receive, self.send)
        return Connection(websocket, ANONYMOUS, hub, RealtimeSettings(**settings))


@pytest.fixture
def hub() -> Hub:
    return Hub(RealtimeSettings(), {"news": NEWS})


async def test_events_are_queued_and_sent_in_order(hub: Hub) -> None:
    server = Server()
    connection = server.connect(hub)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.serve)
        await anyio.wait_all_tasks_blocked()
        for frame in "abc":
            connection.offer(NEWS, frame)
        connection.close(1012, "restart")
        # Nothing is taken any more.
        connection.offer(NEWS, "d")
    sent = [message.get("text", message["type"]) for message in server.sent]
    assert sent == ["websocket.accept", "a", "b", "c", "websocket.close"]
    assert server.sent[-1]["code"] == 1012
    assert hub.receivers() == []


async def test_who_does_not_take_a_message_in_time_is_closed_and_let_go(hub: Hub) -> None:
    server = Server()
    connection = server.connect(hub, REALTIME_SEND_TIMEOUT_SECONDS=0.1)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.serve)
            await anyio.wait_all_tasks_blocked()
            server.takes.clear()
            now = asyncio.get_running_loop().time()
            connection.check(now + 3600)
            connection.offer(NEWS, "a")
            await anyio.wait_all_tasks_blocked()
            # It has time until then.
            connection.check(now)
            assert len(hub.receivers()) == 1
            connection.check(now + 3600)
    assert hub.receivers() == []
    assert [message["type"] for message in server.sent] == ["websocket.accept"]


async def test_large_frames_are_refused_whatever_the_server_lets_through(hub: Hub) -> None:
    server = Server()
    connection = server.connect(hub, REALTIME_MAX_FRAME_BYTES=256)
    # 200 characters, 400 bytes.
    server.received.put_nowait({"type": "websocket.receive", "text": "ä" * 200})
    await connection.serve()
    assert server.sent[-1]["code"] == 1009


async def test_closing_cuts_those_who_do_not_let_themselves_be_closed() -> None:
    hub = Hub(RealtimeSettings(REALTIME_SEND_TIMEOUT_SECONDS=0.1), {})
    server = Server()
    connection = server.connect(hub)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.serve)
            await anyio.wait_all_tasks_blocked()
            server.takes.clear()
            await hub.close()
    assert hub.receivers() == []


async def test_who_floods_us_is_soon_let_go(hub: Hub) -> None:
    server = Server()
    # The second ping in a row is too many.
    connection = server.connect(
        hub, REALTIME_MESSAGES_PER_SECOND=0.1, REALTIME_SEND_TIMEOUT_SECONDS=600
    )
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.serve)
            await anyio.wait_all_tasks_blocked()
            server.takes.clear()
            for _ in range(2):
                server.received.put_nowait({"type": "websocket.receive", "text": PING})
    assert hub.receivers() == []


async def test_of_a_flood_nothing_more_is_read_once_its_end_is_sent(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    connection = server.connect(hub, REALTIME_MESSAGES_PER_SECOND=0.1)
    sent: list[str] = []

    def stop_reading(_: ServerSide) -> None:
        sent.extend(message["type"] for message in server.sent)

    monkeypatch.setattr(ServerSide, "stop_reading", stop_reading)
    for _ in range(2):
        server.received.put_nowait({"type": "websocket.receive", "text": PING})
    await connection.serve()
    assert sent[-1:] == ["websocket.close"]


async def test_a_burst_after_an_answer_is_no_reason_to_close_who_takes_all_of_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    connection = server.connect(hub, REALTIME_QUEUE_SIZE=4)
    sent: list[str] = []

    def write(_: ServerSide, text: str) -> bool:
        sent.append(text)
        return True

    def burst() -> None:
        for number in range(9):
            connection.offer(NEWS, str(number))

    monkeypatch.setattr(ServerSide, "write", write)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.serve)
        await anyio.wait_all_tasks_blocked()
        # In the same turn of the event loop in which the ping is answered.
        server.before_receive = burst
        server.received.put_nowait({"type": "websocket.receive", "text": PING})
        await anyio.wait_all_tasks_blocked()
        connection.close(1012, "restart")
    assert sent == ['{"type":"pong"}', *"012345678"]
    assert server.sent[-1]["code"] == 1012


async def test_a_server_that_waits_for_the_client_to_read_the_end_is_not_waited_for(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Server().connect(hub)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.serve)
            await anyio.wait_all_tasks_blocked()
            monkeypatch.setattr(ServerSide, "is_closing", property(lambda _: True))
            now = asyncio.get_running_loop().time()
            connection.check(now)
            await anyio.wait_all_tasks_blocked()
            # It has time until then.
            assert len(hub.receivers()) == 1
            connection.check(now + 3600)
    assert hub.receivers() == []


class WebSocketsSansIOProtocol:
    """What another release of uvicorn could have under that name."""

    async def receive(self) -> Message:
        return {"type": "websocket.connect"}


def test_another_release_of_the_server_costs_nothing_but_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "uvicorn.protocols.websockets.websockets_sansio_impl"
    monkeypatch.setitem(sys.modules, name, None)
    server_side = runpy.run_path(server_module.__file__)["ServerSide"]
    server = server_side(WebSocketsSansIOProtocol().receive)
    server.push()
    server.abort()
    assert not server.write("text")
    assert (server.is_closing, server.unsent_bytes, server.fragments) == (False, 0, 0)


async def test_the_time_to_take_a_message_is_what_the_setting_says(hub: Hub) -> None:
    server = Server()
    connection = server.connect(hub, REALTIME_SEND_TIMEOUT_SECONDS=60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.serve)
        await anyio.wait_all_tasks_blocked()
        server.takes.clear()
        connection.offer(NEWS, "a")
        await anyio.wait_all_tasks_blocked()
        now = asyncio.get_running_loop().time()
        connection.check(now + 30)
        assert hub.counters.too_slow == 0
        connection.check(now + 61)
        assert hub.counters.too_slow == 1
        server.takes.set()
    assert server.sent[-1]["code"] == 1013
