"""Fixtures of the orders tests."""

from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

import anyio
import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.orm import selectinload, undefer
from starlette.requests import HTTPConnection

from app.core.database import Database
from app.core.principal import Principal, get_principal
from app.orders.models import Order
from tests.factories.orders import OrderFactory
from tests.fixtures.application import MakeApp
from tests.fixtures.caller import Caller

T = TypeVar("T")

ACT_AS = "X-Act-As"


@pytest.fixture
def app(share_app: MakeApp) -> FastAPI:
    """The application, with patience: on a slow machine many requests at once end in 503."""
    return share_app(
        DB_POOL_TIMEOUT_SECONDS=120, DB_LOCK_TIMEOUT_SECONDS=120, REQUEST_TIMEOUT_SECONDS=120
    )


@pytest.fixture
def orders(database: Database, caller: Caller) -> OrderFactory:
    """Stores orders of the one whose `client` is."""
    return OrderFactory(database, caller.id)


@pytest.fixture
def act_as_header(app: FastAPI, caller: Caller) -> str:
    """The name of a header that says who acts, in place of the guard that the app has or not."""

    async def principal_of_header(connection: HTTPConnection) -> Principal:
        return Principal(connection.headers.get(ACT_AS, caller.id))

    app.dependency_overrides[get_principal] = principal_of_header
    return ACT_AS


@pytest.fixture
def stored(database: Database) -> Callable[[UUID], Awaitable[Order]]:
    """Reads an order, whole, from the database."""

    async def read(order_id: UUID) -> Order:
        async with database.read_only() as session:
            return (
                await session.scalars(
                    select(Order)
                    .where(Order.id == order_id)
                    .options(selectinload(Order.lines), undefer(Order.receipt))
                )
            ).one()

    return read


@pytest.fixture
def count_orders(database: Database) -> Callable[[], Awaitable[int]]:
    """Counts the orders of every owner."""

    async def count() -> int:
        async with database.read_only() as session:
            return await session.scalar(select(func.count()).select_from(Order)) or 0

    return count


async def eventually(
    read: Callable[[], Awaitable[T]], condition: Callable[[T], bool], seconds: float = 10
) -> T:
    """Read until the condition holds; fails after the given time."""
    with anyio.fail_after(seconds):
        while not condition(value := await read()):
            await anyio.sleep(0.02)
    return value
