"""What `/metrics` tells, and whom."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Depends
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.database import Database
from app.core.http_settings import HttpSettings
from app.core.metric_files import read_files
from app.core.metrics import Metrics, MetricsEndpoint
from app.core.rate_limit import MemoryRateLimiter, RateLimitSettings, rate_limit
from tests.core.listening import dial, listening, read_all
from tests.core.stack import build_app, client_of

REQUESTS = "http_server_request_duration_seconds_count"
router = APIRouter()


@router.get("/things/{name}")
async def get_thing(name: str) -> str:
    """A route with a parameter."""
    return name


@router.get("/limited", dependencies=[Depends(rate_limit(1, 60))])
async def get_limited() -> None:
    """A route that may be asked once."""


def value_of(text: str, name: str, /, **labels: str) -> float:
    """The sum of all samples with this name and these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def app_with_metrics(**settings: Any) -> ASGIApp:
    """The stack alone, with a route and with metrics, for which no lifespan is run."""
    app = build_app(router, **settings)
    app.routes.append(MetricsEndpoint(HttpSettings(**settings)).route)

    state = {
        "metrics": Metrics(),
        "rate_limiter": MemoryRateLimiter(),
        "settings": RateLimitSettings(),
    }

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": state}, receive, send)

    return with_state


async def read(client: httpx2.AsyncClient) -> str:
    """The text of the metrics."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    return answer.text


async def test_requests_are_counted_by_route_and_whatever_strangers_choose_shares_a_label() -> None:
    async with client_of(app_with_metrics(), address="127.0.0.1") as client:
        before = await read(client)
        for path in ("/things/one", "/things/two", "/nothing", "/nowhere"):
            await client.get(path)
        for method in ("BREW", "CHURN"):
            await client.request(method, "/things/one")
        after = await read(client)

    def counted(**labels: str) -> float:
        return value_of(after, REQUESTS, **labels) - value_of(before, REQUESTS, **labels)

    assert counted(method="GET", route="/things/{name}", status="200") == 2
    assert counted(method="GET", route="unmatched", status="404") == 2
    assert counted(method="OTHER") == 2
    assert counted(route="/metrics", status="200") == 1
    assert "/things/one" not in after
    assert "BREW" not in after


@pytest.mark.parametrize(
    ("address", "headers", "settings"),
    [
        ("203.0.113.7", {}, {}),
        ("::ffff:203.0.113.7", {}, {}),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, {}),
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}, {}),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}, {}),
        ("127.0.0.1", {"Via": "1.1 edge"}, {}),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}, {}),
        ("127.0.0.1", {}, {"TRUSTED_PROXIES": ["127.0.0.1"]}),
        ("10.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, {"TRUSTED_PROXIES": ["10.0.0.1"]}),
        ("127.0.0.1", {}, {"METRICS_NETWORKS": ["10.0.0.0/8"]}),
        ("127.0.0.1", {}, {"METRICS_NETWORKS": []}),
        ("unix", {}, {"TRUSTED_PROXIES": ["unix"]}),
    ],
)
async def test_for_strangers_and_for_proxies_there_is_no_such_path(
    address: str, headers: dict[str, str], settings: dict[str, Any]
) -> None:
    async with client_of(app_with_metrics(**settings), address=address) as client:
        answer = await client.get("/metrics", headers=headers)
        other = await client.get("/nothing", headers=headers)
    assert (answer.status_code, other.status_code) == (404, 404)

    def without_names(problem: dict[str, str]) -> dict[str, str]:
        return {name: it for name, it in problem.items() if name not in {"instance", "request_id"}}

    assert without_names(answer.json()) == without_names(other.json())


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3"])
async def test_a_network_may_read_whatever_name_it_uses_for_the_service(address: str) -> None:
    settings = {"METRICS_NETWORKS": ["10.0.0.0/8"], "TRUSTED_HOSTS": ["shop.example.com"]}
    async with client_of(app_with_metrics(**settings), address=address) as client:
        assert REQUESTS in await read(client)
        assert (await client.post("/metrics")).status_code == 404


async def test_nginx_with_its_defaults_is_known_by_its_version_of_http() -> None:
    async with listening(app_with_metrics()) as server:
        async with await dial(server) as stream:
            await stream.send(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            answer = await read_all(stream)
        assert b" 404 " in answer.partition(b"\r\n")[0]
        async with await dial(server) as stream:
            await stream.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await read_all(stream)
        assert b" 200 " in answer.partition(b"\r\n")[0]


def test_production_does_not_tell_everybody() -> None:
    [problem] = HttpSettings(METRICS_NETWORKS=["0.0.0.0/0"]).production_problems()
    assert problem.startswith("METRICS_NETWORKS: ")
    with pytest.raises(ValidationError, match="entry 2 is not an IP address or a network"):
        HttpSettings(METRICS_NETWORKS=["10.0.0.0/8", "monitoring"])


async def test_the_whole_service_tells_of_its_pool_and_its_event_loop(
    client: httpx2.AsyncClient, database: Database, lifespan_state: dict[str, Any]
) -> None:
    settings = lifespan_state["settings"]
    async with database.transaction() as session:
        await session.connection()
        busy = await read(client)
    assert value_of(busy, "database_connections", state="used") == 1
    most = settings.DB_POOL_SIZE + settings.DB_MAX_OVERFLOW
    assert value_of(busy, "database_connections_max") == most
    assert value_of(await read(client), "database_connections", state="used") == 0
    assert value_of(busy, "service_start_time_seconds") > 0
    assert "event_loop_lag_seconds_bucket" in busy


async def test_refused_requests_are_counted() -> None:
    async with client_of(app_with_metrics(), address="127.0.0.1") as client:
        before = value_of(await read(client), "rate_limit_rejections_total")
        statuses = [(await client.get("/limited")).status_code for _ in range(3)]
        after = value_of(await read(client), "rate_limit_rejections_total")
    assert (statuses, after - before) == ([200, 429, 429], 2)


async def test_what_cannot_be_read_leaves_out_nothing_else() -> None:
    metrics = Metrics()

    async def fail() -> None:
        raise OSError("away")

    metrics.inquire(fail)
    assert REQUESTS in (await metrics.render()).decode()


_PROCESS = """
import sys
from prometheus_client import Counter, Gauge, Histogram
Counter("sent", "-").inc(int(sys.argv[1]))
Gauge("held", "-", multiprocess_mode="livesum").set(int(sys.argv[1]))
Histogram("took", "-", ["route"]).labels("/things").observe(0.01)
print("counted", flush=True)
sys.stdin.read()
"""


def _names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


async def test_processes_add_up_also_when_one_was_killed(tmp_path: Path) -> None:
    async def run(number: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _PROCESS, number),
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            stdin=PIPE,
            stdout=PIPE,
        )
        assert process.stdout
        assert await process.stdout.readline() == b"counted\n"
        return process

    def read_all_processes() -> tuple[float, ...]:
        text = read_files(str(tmp_path)).decode()
        names = ("sent_total", "took_count", "held")
        return tuple(value_of(text, name) for name in names)

    killed, living = [await run(number) for number in ("30", "12")]
    assert read_all_processes() == (42, 2, 42)
    killed.kill()
    await killed.wait()
    # Another one was killed while it made its file.
    (tmp_path / "counter_99999999.db").touch()
    # What was counted is kept once, what was held has gone.
    assert [read_all_processes() for _ in range(2)] == [(42, 2, 12)] * 2
    await living.communicate(b"")
    await (await run("1")).communicate(b"")
    assert read_all_processes() == (43, 3, 0)
    # However many have ended.
    kept = {"counter_ended.db", "histogram_ended.db", "lock"}
    assert set(_names(tmp_path)) == kept
