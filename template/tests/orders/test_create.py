from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from app.core.database import Database
from tests.factories.orders import line_body, order_body

PATH = "/api/v1/orders"


async def test_a_placed_order_is_answered_whole(client: httpx2.AsyncClient) -> None:
    response = await client.post(PATH, json=order_body())

    assert response.status_code == 201
    order = response.json()
    assert response.headers["location"] == f"{PATH}/{order['id']}"
    assert response.headers["etag"].startswith('"')
    assert UUID(order["id"]).version == 7
    created_at = datetime.fromisoformat(order["created_at"])
    assert datetime.now(UTC) - created_at < timedelta(minutes=1)
    assert order == {
        "id": order["id"],
        "status": "placed",
        "customer_email": "ada@example.com",
        "lines": [
            {"sku": "TEA-250", "quantity": 2, "unit_price": "12.50"},
            {"sku": "MUG-WHITE", "quantity": 1, "unit_price": "8.90"},
        ],
        "total": "33.90",
        "created_at": order["created_at"],
        "updated_at": order["created_at"],
    }


async def test_the_location_leads_to_the_order(client: httpx2.AsyncClient) -> None:
    placed = await client.post(PATH, json=order_body())

    found = await client.get(placed.headers["location"])

    assert found.status_code == 200
    assert found.json()["id"] == placed.json()["id"]
    assert found.json()["lines"] == placed.json()["lines"]


@pytest.mark.parametrize(
    ("lines", "total"),
    [
        ([line_body(quantity=3, unit_price="0.1")], "0.30"),
        ([line_body(unit_price="0.1"), line_body(unit_price="0.2")], "0.30"),
        ([line_body(unit_price="0")], "0.00"),
        ([line_body(quantity=7, unit_price="1234567.89")], "8641975.23"),
        ([line_body(quantity=1_000_000, unit_price="99999999.99")] * 100, "9999999999000000.00"),
        # An odd number above 2^53, which no binary float can hold.
        ([line_body(quantity=999_999, unit_price="99999999.99")] * 100, "9999989999000001.00"),
    ],
)
async def test_the_total_is_exact(
    client: httpx2.AsyncClient, lines: list[dict[str, Any]], total: str
) -> None:
    placed = await client.post(PATH, json=order_body(lines=lines))
    read = await client.get(placed.headers["location"])

    assert (placed.json()["total"], read.json()["total"]) == (total, total)


async def test_the_email_is_normalized(client: httpx2.AsyncClient) -> None:
    response = await client.post(PATH, json=order_body(customer_email="Ada@EXAMPLE.com"))

    assert response.json()["customer_email"] == "Ada@example.com"


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, ["body", "customer_email"]),
        (order_body(note="fast"), ["body", "note"]),
        (order_body(customer_email="ada"), ["body", "customer_email"]),
        (order_body(customer_email="Ada <ada@example.com>"), ["body", "customer_email"]),
        (order_body(customer_email=f"{'a' * 250}@example.com"), ["body", "customer_email"]),
        (order_body(lines=[]), ["body", "lines"]),
        (order_body(lines=[line_body()] * 101), ["body", "lines"]),
        (order_body(lines={"0": line_body()}), ["body", "lines"]),
        (order_body(lines=[line_body(id=1)]), ["body", "lines", 0, "id"]),
        (order_body(lines=[line_body(sku="")]), ["body", "lines", 0, "sku"]),
        (order_body(lines=[line_body(sku=" ")]), ["body", "lines", 0, "sku"]),
        (order_body(lines=[line_body(sku="A\x00")]), ["body", "lines", 0, "sku"]),
        (order_body(lines=[line_body(sku="A\n")]), ["body", "lines", 0, "sku"]),
        (order_body(lines=[line_body(sku="A" * 65)]), ["body", "lines", 0, "sku"]),
        (order_body(lines=[line_body(quantity=0)]), ["body", "lines", 0, "quantity"]),
        (order_body(lines=[line_body(quantity=-1)]), ["body", "lines", 0, "quantity"]),
        (order_body(lines=[line_body(quantity=1.0)]), ["body", "lines", 0, "quantity"]),
        (order_body(lines=[line_body(quantity="1")]), ["body", "lines", 0, "quantity"]),
        (order_body(lines=[line_body(quantity=True)]), ["body", "lines", 0, "quantity"]),
        (order_body(lines=[line_body(quantity=10**30)]), ["body", "lines", 0, "quantity"]),
        (order_body(lines=[line_body(unit_price=1.5)]), ["body", "lines", 0, "unit_price"]),
        (order_body(lines=[line_body(unit_price=1)]), ["body", "lines", 0, "unit_price"]),
        (order_body(lines=[line_body(unit_price="-1")]), ["body", "lines", 0, "unit_price"]),
        (order_body(lines=[line_body(unit_price="NaN")]), ["body", "lines", 0, "unit_price"]),
        (order_body(lines=[line_body(unit_price="1e3")]), ["body", "lines", 0, "unit_price"]),
        (order_body(lines=[line_body(unit_price="1.005")]), ["body", "lines", 0, "unit_price"]),
        (order_body(lines=[line_body(unit_price="9" * 9)]), ["body", "lines", 0, "unit_price"]),
    ],
)
async def test_a_body_that_breaks_the_contract_is_refused_and_nothing_is_stored(
    client: httpx2.AsyncClient,
    count_orders: Callable[[], Awaitable[int]],
    body: dict[str, Any],
    loc: list[str | int],
) -> None:
    response = await client.post(PATH, json=body)

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert loc in [error["loc"] for error in response.json()["errors"]]
    assert await count_orders() == 0


async def test_lone_surrogates_are_refused(client: httpx2.AsyncClient) -> None:
    body = rb'{"customer_email": "a@example.com", "lines": [], "\ud800": "\ud800"}'

    response = await client.post(PATH, content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 422


@pytest.fixture
async def commits_fail(database: Database) -> AsyncIterator[None]:
    """Adds a row to each transaction whose foreign key is checked, and broken, at the commit."""
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE promises (id INTEGER PRIMARY KEY)"))
        await session.execute(
            text(
                "CREATE TABLE pledges (promise_id INTEGER"
                " REFERENCES promises (id) DEFERRABLE INITIALLY DEFERRED)"
            )
        )

    def pledge(session: Session) -> None:
        session.execute(text("INSERT INTO pledges VALUES (1)"))

    event.listen(Session, "before_commit", pledge)
    yield
    event.remove(Session, "before_commit", pledge)


# In this order: to make the caller may take a commit.
@pytest.mark.usefixtures("caller", "commits_fail")
async def test_a_failed_commit_answers_500_and_leaves_nothing(
    client: httpx2.AsyncClient, count_orders: Callable[[], Awaitable[int]]
) -> None:
    response = await client.post(PATH, json=order_body(), headers={"Idempotency-Key": "once"})

    assert response.status_code == 500
    assert "pledges" not in response.text
    assert await count_orders() == 0
