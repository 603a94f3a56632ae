"""Orders belong to the user whose token placed them; nobody else can tell that they exist."""

from uuid import UUID, uuid4

import httpx2

from app.core.database import Database
from app.orders.models import Order
from tests.factories.orders import OrderFactory, order_body
from tests.fixtures.authentication import Account

PATH = "/api/v1/orders"


async def test_an_order_belongs_to_the_user_who_placed_it(
    client: httpx2.AsyncClient, user: Account, database: Database
) -> None:
    placed = await client.post(PATH, json=order_body())

    async with database.read_only() as session:
        order = await session.get_one(Order, UUID(placed.json()["id"]))
    assert order.owner_id == str(user.id)


async def test_others_neither_read_nor_list_nor_cancel_it(
    client: httpx2.AsyncClient, orders: OrderFactory, other_user: Account
) -> None:
    path = f"{PATH}/{(await orders.a_placed()).id}"
    # Where answers are cached, this one now is.
    mine = await client.get(path)
    theirs = other_user.headers

    read = await client.get(path, headers=theirs)
    cancelled = await client.post(f"{path}/cancel", headers=theirs)
    missing = await client.get(f"{PATH}/{uuid4()}", headers=theirs)

    assert (await client.get(PATH, headers=theirs)).json()["items"] == []
    assert (read.status_code, cancelled.status_code) == (404, 404)
    assert read.json()["type"] == missing.json()["type"]
    assert (await client.get(path)).json() == mine.json()


async def test_an_idempotency_key_is_its_user_s_own(
    client: httpx2.AsyncClient, other_user: Account
) -> None:
    once = {"Idempotency-Key": "once"}
    placed = [
        await client.post(PATH, json=order_body(), headers={**once, **headers})
        for headers in ({}, {}, other_user.headers)
    ]

    assert [answer.status_code for answer in placed] == [201] * 3
    first, repeated, of_another = (answer.json()["id"] for answer in placed)
    assert first == repeated != of_another
