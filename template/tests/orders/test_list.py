from decimal import Decimal
from typing import Any

import httpx2
import pytest

from app.core.pagination import MAX_ROWS
from app.orders.models import OrderLine
from tests.factories.orders import OrderFactory, order_body
from tests.fixtures.application import Queries

PATH = "/api/v1/orders"


async def pages(client: httpx2.AsyncClient, limit: int) -> list[list[str]]:
    """The ids of every page, following the cursors to the end."""
    found: list[list[str]] = []
    params: dict[str, Any] = {"limit": limit}
    while True:
        page = (await client.get(PATH, params=params)).json()
        found.append([order["id"] for order in page["items"]])
        if page["next_cursor"] is None:
            return found
        params["cursor"] = page["next_cursor"]


def selects(queries: Queries) -> list[str]:
    # Beginning a transaction takes statements too, and not always the same; so may a guard.
    return [s for s in queries.statements if s.startswith("SELECT") and "FROM order" in s]


async def test_without_orders_the_list_is_empty(client: httpx2.AsyncClient) -> None:
    response = await client.get(PATH)

    assert response.status_code == 200
    assert response.json() == {"items": [], "next_cursor": None}


async def test_orders_are_listed_as_they_are_read_one_by_one(client: httpx2.AsyncClient) -> None:
    placed = await client.post(PATH, json=order_body())

    [listed] = (await client.get(PATH)).json()["items"]

    # Its status may have changed meanwhile: the confirmation runs by itself.
    for name in ("id", "customer_email", "lines", "total", "created_at"):
        assert listed[name] == placed.json()[name]
    assert listed.keys() == placed.json().keys()


async def test_pages_hold_every_order_once_newest_first(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    newest_first = [str(order.id) for order in reversed(await orders.placed(7))]

    assert await pages(client, limit=3) == [newest_first[:3], newest_first[3:6], newest_first[6:]]


async def test_a_full_last_page_has_no_next_one(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    await orders.placed(4)

    assert [len(page) for page in await pages(client, limit=2)] == [2, 2]


async def test_the_default_limit_is_20(client: httpx2.AsyncClient, orders: OrderFactory) -> None:
    await orders.placed(21)

    page = (await client.get(PATH)).json()

    assert len(page["items"]) == 20
    assert page["next_cursor"]


async def test_orders_placed_meanwhile_neither_repeat_nor_hide_others(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    before = [str(order.id) for order in reversed(await orders.placed(6))]

    first = (await client.get(PATH, params={"limit": 3})).json()
    await orders.placed(5)
    second = await client.get(PATH, params={"limit": 3, "cursor": first["next_cursor"]})

    listed = [order["id"] for order in first["items"] + second.json()["items"]]
    assert listed == before


async def test_the_number_of_queries_does_not_grow_with_the_list(
    client: httpx2.AsyncClient, orders: OrderFactory, count_queries: Any
) -> None:
    await orders.placed(1)
    with count_queries() as for_one:
        await client.get(PATH, params={"limit": 100})
    await orders.placed(49)
    with count_queries() as for_fifty:
        response = await client.get(PATH, params={"limit": 100})

    assert len(response.json()["items"]) == 50
    assert len(selects(for_one)) == len(selects(for_fifty)) == 3


async def test_orders_of_others_are_not_listed(
    client: httpx2.AsyncClient, orders: OrderFactory, act_as_header: str
) -> None:
    mine = await orders.owned_by("ada").a_placed()
    await orders.owned_by("bob").placed(3)

    page = (await client.get(PATH, headers={act_as_header: "ada"})).json()

    assert [order["id"] for order in page["items"]] == [str(mine.id)]


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": ""}, "cursor"),
    ],
)
async def test_a_limit_or_cursor_out_of_range_is_refused(
    client: httpx2.AsyncClient, params: dict[str, str], name: str
) -> None:
    response = await client.get(PATH, params=params)

    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["query", name]


async def test_a_page_of_large_orders_ends_early(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    placed = await orders.placed(12)
    async with orders.database.transaction() as session:
        session.add_all(
            OrderLine(
                order_id=order.id, position=position, sku="A", quantity=1, unit_price=Decimal(1)
            )
            for order in placed
            for position in range(2, 100)
        )

    page = (await client.get(PATH, params={"limit": 100})).json()

    assert sum(1 + len(order["lines"]) for order in page["items"]) == 909 <= MAX_ROWS
    newest_first = [str(order.id) for order in reversed(placed)]
    assert await pages(client, limit=100) == [newest_first[:9], newest_first[9:]]
