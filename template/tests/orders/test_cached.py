"""`GET /orders/{id}` from the cache: the same answers, without the database, and never outdated."""

import asyncio
import time
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest

from app.core.database import Database
from app.orders.service import OrderConfirmation
from devtools.valkey import ValkeyServer
from tests.factories.orders import OrderFactory, order_body
from tests.fixtures.application import Connect, MakeApp
from tests.fixtures.caller import Caller
from tests.fixtures.server import Serve
from tests.orders.counting_service import QUERY

PATH = "/api/v1/orders"


@pytest.fixture
async def order_path(orders: OrderFactory) -> str:
    return f"{PATH}/{(await orders.a_placed()).id}"


async def test_the_second_read_needs_no_database_and_answers_the_same(
    client: httpx2.AsyncClient, order_path: str, count_queries: Any
) -> None:
    first = await client.get(order_path)
    with count_queries() as queries:
        second = await client.get(order_path)
    assert queries.count == 0
    assert second.content == first.content
    assert second.headers["etag"] == first.headers["etag"]


async def test_an_answer_is_for_its_user_only_and_checked_before_it_is_used_again(
    client: httpx2.AsyncClient, order_path: str
) -> None:
    etag = (await client.get(order_path)).headers["etag"]
    for headers in ({}, {"If-None-Match": etag}):
        answer = await client.get(order_path, headers=headers)
        assert answer.status_code == (304 if headers else 200)
        assert answer.headers["etag"] == etag
        assert answer.headers["cache-control"] == "private, no-cache"
        assert "authorization" in answer.headers["vary"].lower()


async def test_an_unchanged_order_is_not_sent_again_and_costs_no_query(
    client: httpx2.AsyncClient, order_path: str, count_queries: Any
) -> None:
    etag = (await client.get(order_path)).headers["etag"]
    with count_queries() as queries:
        answer = await client.get(order_path, headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content, queries.count) == (304, b"", 0)


async def test_a_stampede_on_a_cold_order_runs_one_query(
    client: httpx2.AsyncClient,
    orders: OrderFactory,
    count_queries: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # However slow the machine is.
    monkeypatch.setattr("app.core.cache._WAIT_SECONDS", 30)
    monkeypatch.setattr("app.core.cache._LEASE_SECONDS", 60)
    path = f"{PATH}/{(await orders.a_placed()).id}"
    with count_queries() as queries:
        answers = await asyncio.gather(*(client.get(path) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert sum("FROM orders" in statement for statement in queries.statements) == 1


async def test_a_stampede_on_two_processes_runs_one_query(
    serve: Serve, caller: Caller, orders: OrderFactory
) -> None:
    path = f"{PATH}/{(await orders.a_placed()).id}"
    env = {"REQUEST_TIMEOUT_SECONDS": "120", "REDIS_TIMEOUT_SECONDS": "30"}
    served = partial(serve, env=env, app="tests.orders.counting_service:create_app")
    async with (
        served() as one,
        served() as other,
        httpx2.AsyncClient(
            headers=caller.headers, timeout=120, limits=httpx2.Limits(max_connections=40)
        ) as client,
    ):
        urls = [f"{one.url}{path}", f"{other.url}{path}"]
        answers = await asyncio.gather(*(client.get(urls[n % 2]) for n in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert (one.logs() + other.logs()).count(QUERY) == 1


async def test_whoever_cancels_reads_the_cancelled_order(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    for order in await orders.placed(20):
        path = f"{PATH}/{order.id}"
        assert (await client.get(path)).json()["status"] == "placed"
        assert (await client.post(f"{path}/cancel")).status_code == 200
        assert (await client.get(path)).json()["status"] == "cancelled"


async def test_a_confirmed_order_is_read_as_confirmed(
    client: httpx2.AsyncClient, database: Database, orders: OrderFactory
) -> None:
    order = await orders.a_placed()
    path = f"{PATH}/{order.id}"
    await client.get(path)
    async with database.transaction() as session:
        await OrderConfirmation(session).confirm(order.id, b"receipt")
    assert (await client.get(path)).json()["status"] == "confirmed"


async def test_someone_else_is_not_given_the_cached_order(
    client: httpx2.AsyncClient, orders: OrderFactory, act_as_header: str
) -> None:
    path = f"{PATH}/{(await orders.owned_by('ada').a_placed()).id}"
    for _ in range(2):
        own = await client.get(path, headers={act_as_header: "ada"})
        foreign = await client.get(path, headers={act_as_header: "bob"})
        assert (own.status_code, foreign.status_code) == (200, 404)


async def test_readers_and_writers_at_once_leave_nothing_outdated(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    paths = [f"{PATH}/{order.id}" for order in await orders.placed(10)]

    async def read(path: str) -> None:
        for _ in range(5):
            await client.get(path)

    async with anyio.create_task_group() as tasks:
        for path in paths:
            for _ in range(3):
                tasks.start_soon(read, path)
            tasks.start_soon(client.post, f"{path}/cancel")
    statuses = {(await client.get(path)).json()["status"] for path in paths}
    assert statuses == {"cancelled"}


async def test_without_redis_the_database_answers(
    make_app: MakeApp, connect: Connect, caller: Caller, private_redis: ValkeyServer
) -> None:
    url = private_redis.start().url()
    async with connect(make_app(REDIS_URL=url, REDIS_TIMEOUT_SECONDS=0.5)) as client:
        client.headers.update(caller.headers)
        path = (await client.post(PATH, json=order_body())).headers["location"]
        await client.get(path)
        private_redis.pause()
        start = time.monotonic()
        answers = await asyncio.gather(*(client.get(path) for _ in range(20)))
        answers += [await client.get(path) for _ in range(20)]
        assert time.monotonic() - start < 12
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["id"] for answer in answers} == {path.rpartition("/")[2]}
