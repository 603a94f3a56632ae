"""Clients that do not read: closed or served less, without anybody else noticing."""

import json
import struct
from contextlib import suppress

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream

from tests.core.test_handshake import UPGRADE
from tests.fixtures.caller import Caller
from tests.fixtures.server import ServedProcess
from tests.realtime.client import PATIENCE_SECONDS, Client, open_client
from tests.realtime.conftest import ServeChannels, publish, statistics

ENV = {"REALTIME_QUEUE_SIZE": "8", "REALTIME_SEND_TIMEOUT_SECONDS": "60"}
# Together more than the operating system buffers of a connection.
LENGTH = 250_000
TIMES = 60
BATCH = 6
# Of clients, with a mask of zero (RFC 6455, section 5.2).
PING_FRAME = b"\x89\xfd" + bytes(4 + 125)
PONG_FRAME = b"\x8a\x80" + bytes(4)
TEXT_BEGINS = b"\x01\x80" + bytes(4)
TEXT_GOES_ON = b"\x00\x80" + bytes(4)


async def test_a_client_that_stops_reading_is_closed_and_the_others_hear_all(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    async with (
        serve_channels(env={**ENV, "REALTIME_MAX_CONNECTIONS": "2"}) as server,
        await stalled(server, caller, "news") as stream,
        open_client(server, caller.headers, max_size=None) as lively,
    ):
        await lively.subscribe("news")
        numbers: list[int] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_collect, lively, numbers)
            for _ in range(0, TIMES, BATCH):
                await publish(server, "news", length=LENGTH, times=BATCH)
        assert numbers == [*range(BATCH)] * (TIMES // BATCH)
        await _logged(server, '"code":1013')
        # It takes no place any more, and the reason is on its way, although nothing is read.
        await _room(server, caller)
        # What was on its way arrives when it reads again, and then why it was closed.
        assert await _close_code(stream) == 1013
        assert server.logs().count('"code":1013') == 1
        assert (await statistics(server))["too_slow"] == 1
        assert "Traceback" not in server.logs()


async def test_a_client_that_never_reads_again_is_dropped(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    env = {"REALTIME_SEND_TIMEOUT_SECONDS": "0.5", "REALTIME_MAX_CONNECTIONS": "1"}
    async with serve_channels(env=env) as server:
        async with await stalled(server, caller, "news") as stream:
            await publish(server, "news", length=LENGTH, times=TIMES)
            await _logged(server, '"code":1013')
            await _room(server, caller)
            # Past the time limit nothing is kept for it, not even the close frame.
            await anyio.sleep(2)
            with pytest.raises(anyio.EndOfStream):
                await _close_code(stream)
        assert "Traceback" not in server.logs()


async def test_who_has_the_server_itself_hold_things_is_dropped(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    env = {
        "REALTIME_SEND_TIMEOUT_SECONDS": "60",
        "REALTIME_HEARTBEAT_SECONDS": "3600",
        "REALTIME_MAX_FRAME_BYTES": "256",
        "REALTIME_MESSAGES_PER_SECOND": "100000",
    }
    async with (
        serve_channels(env=env) as server,
        open_client(server, caller.headers) as lively,
    ):
        # Each is answered with a pong, which nobody reads; 16 MB of them.
        await _flood(server, caller, [PING_FRAME * 500] * 250)
        await _logged(server, "pongs are not read")
        # A message of any number of frames, none of which adds to its size.
        await _flood(server, caller, [TEXT_BEGINS, TEXT_GOES_ON * 1000])
        await _logged(server, "too many fragments")
        assert await lively.ask(type="ping") == {"type": "pong"}
        assert "Traceback" not in server.logs()


async def test_frames_that_only_the_server_sees_count_as_messages(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    async with serve_channels(env={"REALTIME_MESSAGES_PER_SECOND": "10"}) as server:
        for number, frames in enumerate((PING_FRAME, PONG_FRAME, TEXT_GOES_ON), start=1):
            async with await stalled(server, caller, "news") as stream:
                if frames is TEXT_GOES_ON:
                    await stream.send(TEXT_BEGINS)
                await stream.send(frames * 100)
                assert await _close_code(stream) == 1008
            assert server.logs().count("too many messages") == number
        assert "Traceback" not in server.logs()


async def test_a_channel_that_may_drop_keeps_the_newest(
    serve_channels: ServeChannels, caller: Caller
) -> None:
    async with (
        serve_channels(env=ENV) as server,
        await stalled(server, caller, "ticker") as stream,
    ):
        # More than fits into the queue, of which none can be written in between.
        await publish(server, "ticker", length=LENGTH, times=200)
        frames = _Frames(stream)
        numbers: list[int] = []
        with anyio.fail_after(PATIENCE_SECONDS):
            while not numbers or numbers[-1] != 199:
                _, payload = await frames.next()
                frame = json.loads(payload)
                if frame["type"] == "event":
                    numbers.append(frame["data"]["number"])
        counted = await statistics(server)
    assert numbers == sorted(numbers)
    assert len(numbers) < 200
    assert numbers[-8:] == list(range(192, 200))
    assert (counted["events"], counted["deliveries"]) == (200, 200)
    assert counted["dropped"] == 200 - len(numbers)


async def _flood(server: ServedProcess, caller: Caller, chunks: list[bytes]) -> None:
    """Send all of it, read nothing, and wait for the end of the connection."""
    with anyio.fail_after(PATIENCE_SECONDS), suppress(anyio.BrokenResourceError):
        async with await stalled(server, caller, "news") as stream:
            for chunk in chunks:
                await stream.send(chunk)
            # Then whatever is sent finds nobody.
            while True:
                await stream.send(PONG_FRAME)
                await anyio.sleep(0.02)


async def stalled(server: ServedProcess, caller: Caller, channel: str) -> SocketStream:
    """Subscribe over a bare connection that reads nothing until it is asked to."""
    stream = await anyio.connect_tcp("127.0.0.1", httpx2.URL(server.url).port or 80)
    headers = {**UPGRADE, "Host": "127.0.0.1", **caller.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    await stream.send(f"GET /api/v1/ws HTTP/1.1\r\n{lines}\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await stream.receive(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    text = json.dumps({"type": "subscribe", "channel": channel}).encode()
    # A text frame whose mask is zero (RFC 6455, section 5.2).
    await stream.send(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
    _, payload = await _Frames(stream).next()
    assert json.loads(payload) == {"type": "subscribed", "channel": channel}
    return stream


class _Frames:
    """Reads the frames of a server, one after the other."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream

    async def next(self) -> tuple[int, bytes]:
        """The opcode and the payload of the next one."""
        opcode, length = await self._exactly(2)
        if length == 126:
            [length] = struct.unpack("!H", await self._exactly(2))
        elif length == 127:
            [length] = struct.unpack("!Q", await self._exactly(8))
        return opcode & 0x0F, await self._exactly(length)

    async def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += await self._stream.receive(count - len(data))
        return data


async def _collect(client: Client, numbers: list[int]) -> None:
    while len(numbers) < TIMES:
        numbers.append((await client.receive())["data"]["number"])


async def _close_code(stream: SocketStream) -> int:
    frames = _Frames(stream)
    with anyio.fail_after(PATIENCE_SECONDS):
        while (frame := await frames.next())[0] != 0x8:
            pass
    return int.from_bytes(frame[1][:2], "big")


async def _logged(server: ServedProcess, text: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while text not in server.logs():
            await anyio.sleep(0.02)


async def _room(server: ServedProcess, caller: Caller) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while not await _has_room(server, caller):
            await anyio.sleep(0.05)


async def _has_room(server: ServedProcess, caller: Caller) -> bool:
    async with httpx2.AsyncClient(base_url=server.url) as client:
        headers = {**caller.headers, **UPGRADE}
        with anyio.move_on_after(0.2):
            return (await client.get("/api/v1/ws", headers=headers)).status_code != 503
        # Upgraded, so that no answer in the sense of HTTP comes.
        return True
