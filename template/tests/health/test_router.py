"""The probes, through the whole application."""

import asyncio
from typing import Any

import httpx2
from fastapi import FastAPI

from tests.fixtures.application import Connect, CountQueries, MakeApp


async def test_alive_without_asking_anything(
    client: httpx2.AsyncClient, count_queries: CountQueries
) -> None:
    with count_queries() as queries:
        answer = await client.get("/health/live")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
    assert answer.headers["cache-control"] == "no-store"
    assert queries.count == 0


async def test_ready_when_the_database_answers(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/health/ready")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ready"
    assert answer.json()["checks"]["database"] == "ok"
    assert answer.headers["cache-control"] == "no-store"


async def test_a_herd_of_probes_is_one_query(
    client: httpx2.AsyncClient, count_queries: CountQueries
) -> None:
    with count_queries() as queries:
        probes = (client.get("/health/ready") for _ in range(50))
        assert {answer.status_code for answer in await asyncio.gather(*probes)} == {200}
    # What it takes to ask once, and nothing of it again.
    assert 1 <= queries.count == len(set(queries.statements))


async def test_a_draining_process_is_alive_and_not_ready(
    client: httpx2.AsyncClient, lifespan_state: dict[str, Any]
) -> None:
    lifespan_state["health"].start_draining()
    answer = await client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert answer.json()["checks"]["database"] == "ok"
    assert answer.headers["cache-control"] == "no-store"
    assert (await client.get("/health/live")).status_code == 200


async def test_the_probes_are_not_rate_limited(make_app: MakeApp, connect: Connect) -> None:
    async with connect(make_app(RATE_LIMIT_REQUESTS=1)) as client:
        for _ in range(3):
            answer = await client.get("/health/ready")
            assert answer.status_code == 200
            assert "RateLimit-Limit" not in answer.headers


async def test_the_schema_describes_both_answers_of_readiness(app: FastAPI) -> None:
    responses = app.openapi()["paths"]["/health/ready"]["get"]["responses"]
    for status in ("200", "503"):
        schema = responses[status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Readiness"}
