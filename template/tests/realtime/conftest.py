"""The service with channels for tests, as a process."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import httpx2
import pytest

from tests.fixtures.server import Serve, ServedProcess

APP = "tests.realtime.service:create_app"


class ServeChannels(Protocol):
    """Run the service with channels for tests: `async with serve_channels() as server`."""

    def __call__(
        self, env: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[ServedProcess]: ...


@pytest.fixture
def serve_channels(serve: Serve) -> ServeChannels:
    """Run the service with channels for tests."""

    def run(env: Mapping[str, str] | None = None) -> AbstractAsyncContextManager[ServedProcess]:
        return serve(env=env, app=APP)

    return run


async def statistics(server: ServedProcess) -> dict[str, Any]:
    """What the hub of the service measures."""
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        answer = await client.get("/tests/statistics")
        found: dict[str, Any] = answer.raise_for_status().json()
        return found


async def publish(server: ServedProcess, channel: str, **parameters: Any) -> None:
    """Have the service publish notes on one of its channels."""
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as client:
        answer = await client.post(f"/tests/publish/{channel}", params=parameters)
        answer.raise_for_status()
