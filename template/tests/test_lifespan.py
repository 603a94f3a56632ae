"""Start and end of the service, as a process of its own under uvicorn."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpx2
import pytest
from fastapi import FastAPI

from app import domain_resources
from app.core.background import BackgroundRunner
from app.health.service import HealthService
from tests.fixtures.application import open_client
from tests.fixtures.server import Serve, ServedProcess

APP = "tests.sample_service:create_app"
# uvicorn shuts down in good order and then ends by the signal it got, as shells expect it.
CLEAN = {0, -signal.SIGTERM}
_PATIENCE_SECONDS = 30


def events(server: ServedProcess) -> list[str]:
    return [line["event"] for line in server.lines()]


async def ready(client: httpx2.AsyncClient) -> tuple[int, Any]:
    # A connection of its own, as each probe makes.
    answer = await client.get("/health/ready", headers={"Connection": "close"})
    return answer.status_code, answer.json()["status"]


async def test_it_starts_ready_and_ends_in_good_order(serve: Serve) -> None:
    async with serve() as server, httpx2.AsyncClient(base_url=server.url) as client:
        assert await ready(client) == (200, "ready")
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait() in CLEAN
        assert "Application shutdown complete." in events(server)
        assert "Traceback" not in server.logs()


async def test_a_request_in_flight_is_finished_after_sigterm(serve: Serve) -> None:
    answers: list[httpx2.Response] = []
    async with serve(app=APP) as server, httpx2.AsyncClient(base_url=server.url) as client:

        async def ask() -> None:
            answers.append(await client.get("/api/v1/sample/slow", params={"seconds": 1}))

        async with anyio.create_task_group() as requests:
            requests.start_soon(ask)
            await _until(lambda: "asleep" in events(server))
            server.process.send_signal(signal.SIGTERM)
            # Without a drain time it stops accepting at once.
            with pytest.raises(httpx2.ConnectError), anyio.fail_after(_PATIENCE_SECONDS):
                while True:
                    # Whoever was in line for a connection is cut off; AnyIO trips over one that is
                    # closed as soon as it was made.
                    with suppress(httpx2.ReadError, httpx2.RemoteProtocolError, AttributeError):
                        await ready(client)
        assert [(answer.status_code, answer.json()) for answer in answers] == [(200, "done")]
        assert await server.wait() in CLEAN


async def test_while_draining_it_serves_on_and_a_second_signal_ends_that_at_once(
    serve: Serve,
) -> None:
    async with (
        serve(app=APP, env={"SHUTDOWN_DRAIN_SECONDS": "600"}) as server,
        httpx2.AsyncClient(base_url=server.url) as client,
    ):
        assert await ready(client) == (200, "ready")
        server.process.send_signal(signal.SIGTERM)
        await _until(lambda: "draining" in events(server))
        for _ in range(2):
            # It tells probes to go away.
            assert await ready(client) == (503, "unavailable")
            assert (await client.get("/health/live")).json() == {"status": "alive"}
            assert (await client.get("/api/v1/sample/database")).json() == 42
        server.process.send_signal(signal.SIGINT)
        # uvicorn passes SIGINT on to Python as Ctrl+C, and ends with 0 then.
        assert await server.wait() in {*CLEAN, -signal.SIGINT}
        assert "Application shutdown complete." in events(server)


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(_PATIENCE_SECONDS):
        # The log is another process's file: there is no event to wait for.
        while not condition():
            await anyio.sleep(0.02)


async def test_at_exit_what_was_opened_is_closed_after_the_background_work(app: FastAPI) -> None:
    done: list[str] = []
    async with app.router.lifespan_context(app) as state:
        assert state is not None
        resources = dict(state)

        async def work() -> None:
            await anyio.sleep(0.02)
            assert not resources["http_client"].is_closed
            await resources["database"].ping()
            done.append("work")

        background: BackgroundRunner = resources["background"]
        background.spawn("work", work)
    assert done == ["work"]
    assert resources["http_client"].is_closed
    health: HealthService = resources["health"]
    assert (await health.readiness()).status == "unavailable"


async def test_own_resources_are_in_the_state_and_open_until_all_work_has_ended(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    runners: list[BackgroundRunner] = []

    @asynccontextmanager
    async def open_one_more(*arguments: Any) -> AsyncIterator[dict[str, Any]]:
        async with domain_resources.open_resources(*arguments) as own:
            yield {**own, "sample": done}
            done.append("closed")

    def start_more(own: Any, health: HealthService, *others: Any) -> None:
        domain_resources.start(own, health, *others)
        health.add("sample", anyio.lowlevel.checkpoint, required=True)
        runners.append(others[0])

    async def work() -> None:
        await anyio.sleep(0.02)
        done.append("work")

    monkeypatch.setattr("app.lifespan.open_resources", open_one_more)
    monkeypatch.setattr("app.lifespan.start_domains", start_more)
    async with app.router.lifespan_context(app) as state, open_client(app, state) as client:
        assert dict(state or {})["sample"] is done
        assert (await client.get("/health/ready")).json()["checks"]["sample"] == "ok"
        runners[0].spawn("work", work)
    assert done == ["work", "closed"]
