from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import TypeVar
from uuid import UUID

import anyio
import httpx2

from app.core.database import Database
from app.orders.models import Order, OrderStatus
from app.orders.repository import AnyOwnerOrderRepository
from app.orders.service import OrderConfirmation
from tests.factories.orders import OrderFactory, order_body

PATH = "/api/v1/orders"
# Enough: without the locks, most of them are lost.
MANY = 24
T = TypeVar("T")


async def at_once(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run all calls at once and return their results in the same order."""
    results: dict[int, T] = {}

    async def run(position: int) -> None:
        results[position] = await calls[position]()

    async with anyio.create_task_group() as tasks:
        for position in range(len(calls)):
            tasks.start_soon(run, position)
    return [results[position] for position in range(len(calls))]


async def test_of_many_concurrent_changes_none_is_lost(
    database: Database, orders: OrderFactory, stored: Callable[[UUID], Awaitable[Order]]
) -> None:
    order = await orders.a_placed()

    async def add_one() -> None:
        async with database.transaction() as session:
            locked = await AnyOwnerOrderRepository(session).get_locked(order.id)
            assert locked is not None
            locked.total += Decimal(1)

    await at_once([add_one] * MANY)

    changed = await stored(order.id)
    assert changed.total == order.total + MANY
    assert changed.version == order.version + MANY


async def test_of_many_concurrent_cancellations_one_succeeds(
    client: httpx2.AsyncClient, orders: OrderFactory, stored: Callable[[UUID], Awaitable[Order]]
) -> None:
    order = await orders.a_placed()

    answers = await at_once([lambda: client.post(f"{PATH}/{order.id}/cancel")] * MANY)

    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: MANY - 1}
    assert (await stored(order.id)).version == order.version + 1


async def test_of_many_concurrent_orders_none_is_lost(
    client: httpx2.AsyncClient, count_orders: Callable[[], Awaitable[int]]
) -> None:
    answers = await at_once([lambda: client.post(PATH, json=order_body())] * MANY)

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == MANY
    assert await count_orders() == MANY


async def test_between_cancellation_and_confirmation_exactly_one_wins(
    client: httpx2.AsyncClient,
    database: Database,
    orders: OrderFactory,
    stored: Callable[[UUID], Awaitable[Order]],
) -> None:
    placed = await orders.placed(12)

    async def cancel(order: Order) -> int | None:
        return (await client.post(f"{PATH}/{order.id}/cancel")).status_code

    async def confirm(order: Order) -> int | None:
        async with database.transaction() as session:
            await OrderConfirmation(session).confirm(order.id, b"receipt")
        return None

    calls: list[Callable[[], Awaitable[int | None]]] = []
    for number, order in enumerate(placed):
        calls.append(partial(cancel, order))
        # Now one is first, now the other.
        calls.insert(len(calls) - number % 2, partial(confirm, order))
    statuses = [status for status in await at_once(calls) if status is not None]

    for order, status in zip(placed, statuses, strict=True):
        expected = OrderStatus.CANCELLED if status == 200 else OrderStatus.CONFIRMED
        after = await stored(order.id)
        assert status in {200, 409}
        assert (after.status, after.version) == (expected, order.version + 1)
        assert (after.receipt is None) == (expected is OrderStatus.CANCELLED)


async def test_a_client_that_lost_the_race_is_told_so(
    client: httpx2.AsyncClient, database: Database, orders: OrderFactory
) -> None:
    order = await orders.a_placed()
    etag = (await client.get(f"{PATH}/{order.id}")).headers["etag"]

    answers: list[int] = []

    async def cancel(headers: dict[str, str]) -> None:
        response = await client.post(f"{PATH}/{order.id}/cancel", headers=headers)
        answers.append(response.status_code)

    async with anyio.create_task_group() as tasks, database.transaction() as session:
        await OrderConfirmation(session).confirm(order.id, b"receipt")
        await session.flush()
        # All read the order before this commit and write after it.
        tasks.start_soon(cancel, {})
        tasks.start_soon(cancel, {"If-Match": etag})
        tasks.start_soon(cancel, {"If-Match": "*"})
        await anyio.sleep(0.2)

    assert sorted(answers) == [409, 409, 412]
