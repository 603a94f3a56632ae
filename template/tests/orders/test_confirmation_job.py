import asyncio
import logging
import lzma
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import undefer

from app.core.database import Database
from app.core.jobs import JobContext, Tick
from app.orders import jobs as order_jobs
from app.orders.events import OrderPlaced
from app.orders.jobs import adopt_left_behind, confirm_order, enqueue_confirmation
from app.orders.models import Order, OrderStatus
from app.orders.service import OrderConfirmation
from app.settings import Settings
from devtools.valkey import ValkeyServer
from tests.factories.orders import OrderFactory, order_body
from tests.fixtures.caller import Caller
from tests.fixtures.jobs import Jobs, Work, WorkHere, eventually
from tests.fixtures.server import NO_RESPONSE, Serve, ServedProcess

PATH = "/api/v1/orders"
# Enough for each kill to fall among orders that are being placed and confirmed.
ORDERS = 60
SECONDS = 60
SHORT_LEASE = {"JOB_LEASE_SECONDS": "3"}

Stored = Callable[[UUID], Awaitable[Order]]


async def test_a_placed_order_is_handed_over_in_its_own_transaction(
    client: httpx2.AsyncClient, jobs: Jobs
) -> None:
    cause = {"X-Request-ID": "place-1", "traceparent": f"00-{1:032x}-{2:016x}-01"}
    placed = await client.post(PATH, json=order_body(), headers=cause)

    assert placed.json()["status"] == "placed"
    [row] = await jobs.rows()
    assert row.name == "orders.confirm"
    assert row.context == {"request_id": "place-1", "traceparent": cause["traceparent"]}
    assert row.payload["order_id"] == placed.json()["id"]
    assert "ada@example.com" not in str(row.payload)


async def test_a_worker_confirms_it(
    client: httpx2.AsyncClient, work_here: WorkHere, stored: Stored
) -> None:
    async with work_here():
        placed = await client.post(PATH, json=order_body())
        order_id = UUID(placed.json()["id"])
        order = await eventually(lambda: stored(order_id), _is_confirmed)

    assert order.receipt is not None
    assert "Total 33.90" in lzma.decompress(order.receipt).decode()
    # The cached answer was forgotten by the process that changed it.
    assert (await client.get(f"{PATH}/{order_id}")).json()["status"] == "confirmed"


async def test_a_confirmation_that_is_repeated_changes_nothing(
    database: Database, jobs: Jobs, orders: OrderFactory, stored: Stored, settings: Settings
) -> None:
    http_client = httpx2.AsyncClient()
    placed, cancelled = await orders.a_placed(), await orders.a_cancelled()
    for order in (placed, cancelled):
        event = OrderPlaced(order_id=order.id, owner_id=order.owner_id, lines=(), total=order.total)
        for number in range(2):
            async with database.transaction() as session:
                await enqueue_confirmation(event, session)
                context = JobContext("1", number, session, database, http_client, settings)
                await confirm_order.handler(event, context)

    assert (await stored(placed.id)).version == placed.version + 1
    assert (await stored(cancelled.id)).version == cancelled.version
    assert (await stored(cancelled.id)).receipt is None
    # An order has one confirmation, however often it is announced.
    assert len(await jobs.rows()) == 2


async def make_old(database: Database, but: UUID | None = None) -> None:
    """Let orders have been placed six minutes ago, all but one."""
    async with database.transaction() as session:
        long_ago = datetime.now(UTC) - timedelta(minutes=6)
        await session.execute(update(Order).where(Order.id != but).values(created_at=long_ago))


async def adopt(database: Database, settings: Settings) -> None:
    """Do once what comes with the clock."""
    async with httpx2.AsyncClient() as http_client, database.transaction() as session:
        context = JobContext("1", 1, session, database, http_client, settings)
        await adopt_left_behind.job.handler(Tick(scheduled_for=datetime.now(UTC)), context)


async def test_orders_without_a_job_are_handed_over_once(
    database: Database, jobs: Jobs, orders: OrderFactory, settings: Settings
) -> None:
    """They were placed before the service had jobs, which is when a feature is switched on."""
    placed = await orders.placed(105)
    fresh, given_up, old = placed[0], placed[1], placed[2:]
    await jobs.a_dead_letter(job_id=f"orders.confirm:{given_up.id.hex}")
    await make_old(database, but=fresh.id)
    for _ in range(2):
        await adopt(database, settings)

    handed_over = {row.payload["order_id"] for row in await jobs.rows()}
    assert handed_over == {str(order.id) for order in old}
    assert len(await jobs.rows()) == len(old)


async def test_a_backlog_is_handed_over_in_parts_and_what_has_a_job_is_not_read_again(
    database: Database,
    jobs: Jobs,
    orders: OrderFactory,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order_jobs, "_BATCH", 2)
    monkeypatch.setattr(order_jobs, "_BATCHES", 2)
    old = await orders.placed(9)
    await make_old(database)
    handed_over: list[list[str]] = []
    read: list[UUID] = []
    list_left_behind = OrderConfirmation.list_left_behind

    async def spy(*args: Any, **options: Any) -> list[OrderPlaced]:
        batch = await list_left_behind(*args, **options)
        read.extend(placed.order_id for placed in batch)
        return batch

    monkeypatch.setattr(OrderConfirmation, "list_left_behind", spy)

    for _ in range(4):
        await adopt(database, settings)
        handed_over.append([row.payload["order_id"] for row in await jobs.rows()])

    ids = [str(order.id) for order in old]
    assert handed_over == [ids[:4], ids[:8], ids, ids]
    assert read == [order.id for order in old]


async def test_every_committed_order_is_confirmed_once_however_processes_are_killed(
    serve: Serve, work: Work, database: Database, caller: Caller, jobs: Jobs
) -> None:
    """The seed is printed by pytest when this fails."""
    chance = random.Random()
    seed = chance.getrandbits(32)
    chance.seed(seed)
    logging.getLogger(__name__).info("seed %s", seed)
    answered: set[UUID] = set()
    async with anyio.create_task_group() as tasks:
        services = [_Replaceable(serve) for _ in range(2)]
        workers = [_Replaceable(lambda: work(SHORT_LEASE)) for _ in range(2)]
        for replaceable in (*services, *workers):
            tasks.start_soon(replaceable.run)
        for replaceable in (*services, *workers):
            await replaceable.started.wait()

        await _place_all(services, workers, caller, answered, chance)
        confirmed = await eventually(
            lambda: _count(database), lambda found: set(found) == {"confirmed"}, SECONDS
        )
        for replaceable in (*services, *workers):
            replaceable.end()

    async with database.read_only() as session:
        stored = (await session.scalars(select(Order).options(undefer(Order.receipt)))).all()
    assert confirmed["confirmed"] == len(stored) >= ORDERS
    assert answered <= {order.id for order in stored}
    # Each change raises the version: once placed, once confirmed.
    assert {(order.version, order.receipt is not None) for order in stored} == {(2, True)}
    # Others may come with the clock.
    rows = [row for row in await jobs.rows() if row.name == confirm_order.name]
    assert len(rows) == len(stored)
    assert all(row.done_at for row in rows)
    assert not await jobs.letters()


async def test_orders_are_placed_and_confirmed_although_redis_is_restarted_empty(
    serve: Serve, work: Work, database: Database, caller: Caller, private_redis: ValkeyServer
) -> None:
    env = {**SHORT_LEASE, "REDIS_URL": private_redis.start().url()}
    statuses: Counter[int] = Counter()

    # The worker starts while the service does.
    async with work(env, ready=False) as worker, serve(env) as server:

        async def place(client: httpx2.AsyncClient) -> None:
            for _ in range(10):
                statuses[(await client.post(PATH, json=order_body())).status_code] += 1
                await anyio.sleep(0.05)

        async with (
            httpx2.AsyncClient(base_url=server.url, headers=caller.headers, timeout=20) as client,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(4):
                tasks.start_soon(place, client)
            await anyio.sleep(0.2)
            private_redis.kill()
            await anyio.sleep(0.1)
            private_redis.start()
        await eventually(
            lambda: _count(database), lambda found: found == {"confirmed": 40}, SECONDS
        )
        assert worker.process.poll() is None, worker.logs()

    assert statuses == {201: 40}


class _Replaceable:
    """A process that can be killed and is then replaced by another, as a platform does it."""

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[ServedProcess]]) -> None:
        self._start = start
        self.process: ServedProcess | None = None
        self.started = asyncio.Event()
        self._ending = asyncio.Event()

    async def run(self) -> None:
        while not self._ending.is_set():
            async with self._start() as process:
                self.process = process
                self.started.set()
                while process.process.poll() is None and not self._ending.is_set():
                    await anyio.sleep(0.02)
                self.process = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.process.kill()

    def end(self) -> None:
        self._ending.set()


async def _place_all(
    services: list[_Replaceable],
    workers: list[_Replaceable],
    caller: Caller,
    answered: set[UUID],
    chance: random.Random,
) -> None:
    victims = [chance.choice(services), *workers]
    chance.shuffle(victims)
    kills = sorted(chance.sample(range(10, ORDERS - 10), len(victims)))
    while len(answered) < ORDERS:
        if kills and len(answered) >= kills[0]:
            kills.pop(0)
            victims.pop().kill()
        await _place_some(services, caller, answered, chance)


async def _place_some(
    services: list[_Replaceable], caller: Caller, answered: set[UUID], chance: random.Random
) -> None:
    running = [service.process for service in services if service.process]
    if not running:
        await anyio.sleep(0.05)
        return
    url = chance.choice(running).url
    async with httpx2.AsyncClient(base_url=url, headers=caller.headers, timeout=5) as client:

        async def place() -> None:
            try:
                placed = await client.post(PATH, json=order_body())
            except NO_RESPONSE:
                # Killed: perhaps after the commit. The order then counts, but nobody knows of it.
                return
            if placed.status_code == 201:
                answered.add(UUID(placed.json()["id"]))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(place)


async def _count(database: Database) -> Counter[str]:
    async with database.read_only() as session:
        return Counter(status.value for status in await session.scalars(select(Order.status)))


def _is_confirmed(order: Order) -> bool:
    return order.status is OrderStatus.CONFIRMED
