"""Column types on a real database."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.database import DatabaseSettings, create_engine
from app.core.types import Money, UtcDateTime

items = Table(
    "items",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime),
    Column("price", Money),
    Column("dinars", Money(precision=10, scale=3)),
    # Ends with the connection.
    prefixes=["TEMPORARY"],
)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_engine(DatabaseSettings(DATABASE_URL=SecretStr(database_url)))
    async with engine.connect() as connection:
        await connection.run_sync(items.metadata.create_all)
        yield connection
    await engine.dispose()


async def stored(connection: AsyncConnection, **values: Any) -> Any:
    """What comes back of a value."""
    [column] = values
    await connection.execute(insert(items).values(**values))
    return await connection.scalar(select(items.c[column]).order_by(items.c.id.desc()))


async def test_a_point_in_time_comes_back_in_utc(connection: AsyncConnection) -> None:
    noon = datetime(2026, 3, 29, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))

    back = await stored(connection, at=noon)

    assert back == noon
    assert back.tzinfo is UTC or back.utcoffset() == timedelta(0)
    assert await stored(connection, at=None) is None


async def test_points_in_time_compare_across_offsets(connection: AsyncConnection) -> None:
    await stored(connection, at=datetime(2026, 1, 1, 0, 30, tzinfo=UTC))
    later = datetime(2026, 1, 1, 0, 0, tzinfo=timezone(timedelta(hours=-1)))

    assert await connection.scalar(select(func.count()).where(items.c.at < later)) == 1


async def test_a_naive_datetime_is_refused(connection: AsyncConnection) -> None:
    with pytest.raises(StatementError, match="time zone"):
        await stored(connection, at=datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    "amount", ["0", "0.01", "-12.50", "9999999999999999.99", "-9999999999999999.99", "1E+3"]
)
async def test_an_amount_comes_back_exactly(connection: AsyncConnection, amount: str) -> None:
    back = await stored(connection, price=Decimal(amount))

    assert back == Decimal(amount)
    assert back.as_tuple().exponent == -2


async def test_another_scale_is_kept(connection: AsyncConnection) -> None:
    assert str(await stored(connection, dinars=Decimal("1.5"))) == "1.500"
    assert await stored(connection, dinars=None) is None


@pytest.mark.parametrize(
    "amount", [Decimal("0.001"), Decimal("1e17"), Decimal("NaN"), Decimal("Infinity"), 0.5, True]
)
async def test_what_cannot_be_kept_exactly_is_refused(
    connection: AsyncConnection, amount: object
) -> None:
    with pytest.raises(StatementError, match="money"):
        await stored(connection, price=amount)


async def test_amounts_are_compared_summed_and_multiplied_as_amounts(
    connection: AsyncConnection,
) -> None:
    for amount in ("0.10", "0.20", "100.00"):
        await stored(connection, price=Decimal(amount))

    assert await connection.scalar(select(func.sum(items.c.price))) == Decimal("100.30")
    tripled = select(items.c.price * 3).where(items.c.price == Decimal("0.10"))
    assert await connection.scalar(tripled) == Decimal("0.30")
    more = select(func.count()).where(items.c.price > Decimal(9))
    assert await connection.scalar(more) == 1


def test_a_factor_with_places_is_left_to_python() -> None:
    with pytest.raises(TypeError, match="rounding"):
        items.c.price * Decimal("1.19")


def test_an_impossible_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision"):
        Money(precision=19)
