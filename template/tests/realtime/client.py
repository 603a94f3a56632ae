"""A client of the realtime API: the library `websockets`, and the frames as dictionaries."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.fixtures.server import ServedProcess

# Generous: the machine may be busy.
PATIENCE_SECONDS = 30.0


class Client:
    """An open WebSocket."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.raw = websocket

    async def send(self, **frame: Any) -> None:
        """Send a frame."""
        await self.raw.send(json.dumps(frame))

    async def receive(self) -> dict[str, Any]:
        """Wait for the next frame."""
        with anyio.fail_after(PATIENCE_SECONDS):
            frame: dict[str, Any] = json.loads(await self.raw.recv())
        return frame

    async def ask(self, **frame: Any) -> dict[str, Any]:
        """Send a frame; the next one that comes."""
        await self.send(**frame)
        return await self.receive()

    async def subscribe(self, channel: str) -> None:
        """Subscribe, and see that it is confirmed."""
        answer = await self.ask(type="subscribe", channel=channel)
        assert answer == {"type": "subscribed", "channel": channel}

    async def closed(self) -> tuple[int, str]:
        """Wait for the end, whatever comes before; its code and reason."""
        with anyio.fail_after(PATIENCE_SECONDS):
            try:
                while True:
                    await self.raw.recv()
            except ConnectionClosed as end:
                received = end.rcvd
        return (received.code, received.reason) if received else (1006, "")


@asynccontextmanager
async def open_client(
    server: ServedProcess, headers: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Client]:
    """Connect: `async with open_client(server, caller.headers) as client`."""
    url = f"{server.url.replace('http', 'ws', 1)}/api/v1/ws"
    async with connect(
        url, additional_headers=dict(headers or {}), open_timeout=PATIENCE_SECONDS, **options
    ) as websocket:
        yield Client(websocket)
