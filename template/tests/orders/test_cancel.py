from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import httpx2
import pytest

from app.orders.models import Order, OrderStatus
from tests.factories.orders import OrderFactory

PATH = "/api/v1/orders"


async def test_a_placed_order_is_cancelled(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    order = await orders.a_placed()
    before = (await client.get(f"{PATH}/{order.id}")).json()

    response = await client.post(f"{PATH}/{order.id}/cancel")

    assert response.status_code == 200
    cancelled = response.json()
    assert cancelled["updated_at"] > before["updated_at"]
    assert cancelled == {
        **before,
        "status": "cancelled",
        "updated_at": cancelled["updated_at"],
    }
    read = await client.get(f"{PATH}/{order.id}")
    assert read.json() == cancelled
    assert read.headers["etag"] == response.headers["etag"]


async def test_a_confirmed_order_is_not_cancelled(
    client: httpx2.AsyncClient,
    orders: OrderFactory,
    stored: Callable[[UUID], Awaitable[Order]],
) -> None:
    order = await orders.a_confirmed()

    response = await client.post(f"{PATH}/{order.id}/cancel")

    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "urn:problem:order-not-cancellable"
    assert (await stored(order.id)).status is OrderStatus.CONFIRMED


async def test_an_order_is_cancelled_once(client: httpx2.AsyncClient, orders: OrderFactory) -> None:
    order = await orders.a_cancelled()

    response = await client.post(f"{PATH}/{order.id}/cancel")

    assert response.status_code == 409


async def test_an_order_that_has_not_changed_since_is_cancelled(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    path = f"{PATH}/{(await orders.a_placed()).id}"
    etag = (await client.get(path)).headers["etag"]

    response = await client.post(f"{path}/cancel", headers={"If-Match": etag})

    assert response.status_code == 200


@pytest.mark.parametrize("if_match", ['"of-another-version"', "malformed"])
async def test_an_order_that_has_changed_since_is_left_as_it_is(
    client: httpx2.AsyncClient,
    orders: OrderFactory,
    stored: Callable[[UUID], Awaitable[Order]],
    if_match: str,
) -> None:
    order = await orders.a_placed()

    response = await client.post(f"{PATH}/{order.id}/cancel", headers={"If-Match": if_match})

    assert response.status_code == 412
    assert response.headers["content-type"] == "application/problem+json"
    assert (await stored(order.id)).status is OrderStatus.PLACED


async def test_a_client_that_saw_an_older_version_learns_that_before_the_state(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    path = f"{PATH}/{(await orders.a_placed()).id}"
    seen = (await client.get(path)).headers["etag"]
    await client.post(f"{path}/cancel")

    response = await client.post(f"{path}/cancel", headers={"If-Match": seen})

    assert response.status_code == 412


async def test_an_unknown_order_is_not_found(client: httpx2.AsyncClient) -> None:
    assert (await client.post(f"{PATH}/{uuid4()}/cancel")).status_code == 404


async def test_a_malformed_id_is_refused(client: httpx2.AsyncClient) -> None:
    assert (await client.post(f"{PATH}/nonsense/cancel")).status_code == 422


async def test_an_order_of_someone_else_is_not_found_and_left_as_it_is(
    client: httpx2.AsyncClient,
    orders: OrderFactory,
    act_as_header: str,
    stored: Callable[[UUID], Awaitable[Order]],
) -> None:
    order = await orders.owned_by("ada").a_placed()

    response = await client.post(f"{PATH}/{order.id}/cancel", headers={act_as_header: "bob"})

    assert response.status_code == 404
    assert (await stored(order.id)).status is OrderStatus.PLACED
