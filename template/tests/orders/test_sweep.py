"""The periodic confirmation of orders whose event was lost."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio
import pytest
from sqlalchemy import update

from app.core.database import Database
from app.orders import handlers
from app.orders.events import OrderPlaced
from app.orders.handlers import confirm_left_behind
from app.orders.models import Order, OrderStatus
from tests.factories.orders import OrderFactory
from tests.fixtures.application import Connect, MakeApp

Stored = Callable[[UUID], Awaitable[Order]]


async def make_old(database: Database, *orders: Order) -> None:
    """Have the orders placed a little more than a minute ago."""
    async with database.transaction() as session:
        await session.execute(
            update(Order)
            .where(Order.id.in_([order.id for order in orders]))
            .values(created_at=datetime.now(UTC) - timedelta(seconds=61))
        )


async def test_an_order_that_was_left_behind_is_confirmed(
    database: Database, orders: OrderFactory, stored: Stored
) -> None:
    placed = await orders.placed(25)
    await make_old(database, *placed)

    await confirm_left_behind(database)

    for order in placed:
        after = await stored(order.id)
        assert (after.status, after.version) == (OrderStatus.CONFIRMED, order.version + 1)
        assert after.receipt


async def test_a_fresh_order_and_a_cancelled_one_are_left_alone(
    database: Database, orders: OrderFactory, stored: Stored
) -> None:
    fresh, cancelled = await orders.a_placed(), await orders.a_cancelled()
    await make_old(database, cancelled)

    await confirm_left_behind(database)

    assert (await stored(fresh.id)).status is OrderStatus.PLACED
    assert (await stored(cancelled.id)).status is OrderStatus.CANCELLED


async def test_two_processes_at_once_confirm_an_order_once(
    database: Database, orders: OrderFactory, stored: Stored
) -> None:
    placed = await orders.placed(5)
    await make_old(database, *placed)

    async with anyio.create_task_group() as processes:
        for _ in range(2):
            processes.start_soon(confirm_left_behind, database)

    for order in placed:
        after = await stored(order.id)
        assert (after.status, after.version) == (OrderStatus.CONFIRMED, order.version + 1)


async def test_an_order_that_cannot_be_confirmed_does_not_hold_up_the_others(
    database: Database,
    orders: OrderFactory,
    stored: Stored,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken, fine = await orders.placed(2)
    await make_old(database, broken, fine)

    def render(order: OrderPlaced) -> bytes:
        if order.order_id == broken.id:
            raise ValueError
        return b"receipt"

    monkeypatch.setattr(handlers, "render_receipt", render)
    await confirm_left_behind(database)

    assert (await stored(broken.id)).status is OrderStatus.PLACED
    assert (await stored(fine.id)).status is OrderStatus.CONFIRMED


async def test_the_service_sweeps_by_itself(
    make_app: MakeApp, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = anyio.Event()

    async def note(_: Database) -> None:
        swept.set()

    monkeypatch.setattr(handlers, "_SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(handlers, "confirm_left_behind", note)
    async with connect(make_app()):
        with anyio.fail_after(10):
            await swept.wait()
