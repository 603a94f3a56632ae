"""A real server around an application of the test, in the test's own process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import uvicorn
from anyio.abc import ByteStream
from starlette.types import ASGIApp


@asynccontextmanager
async def listening(app: ASGIApp, **options: Any) -> AsyncIterator[uvicorn.Server]:
    """Serve `app` with uvicorn, whose `options` these are, until the end of the block."""
    options = {"host": "127.0.0.1", "port": 0, **options}
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, proxy_headers=False, **options
    )
    server = uvicorn.Server(config)
    ended = anyio.Event()

    async def serve() -> None:
        await server.serve()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        with anyio.fail_after(30):
            while not server.started:
                await anyio.sleep(0.01)
        try:
            yield server
        finally:
            server.should_exit = True
            # Cancelled, it would leave its sockets and tasks to the tests that follow.
            with anyio.CancelScope(shield=True):
                await ended.wait()


async def dial(server: uvicorn.Server) -> ByteStream:
    """A bare connection, for what HTTP clients do not send."""
    port = server.servers[0].sockets[0].getsockname()[1]
    return await anyio.connect_tcp("127.0.0.1", port)


async def read_all(stream: ByteStream) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    with anyio.fail_after(30):
        async for part in stream:
            received += part
    return received
