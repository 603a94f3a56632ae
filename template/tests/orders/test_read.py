from uuid import uuid4

import httpx2
import pytest

from tests.factories.orders import OrderFactory

PATH = "/api/v1/orders"


async def test_an_order_is_answered_with_its_lines_in_order(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    order = await orders.a_confirmed()

    response = await client.get(f"{PATH}/{order.id}")

    assert response.status_code == 200
    assert response.headers["etag"]
    assert response.json()["status"] == "confirmed"
    assert [line["sku"] for line in response.json()["lines"]] == ["TEA-250", "MUG-WHITE"]


async def test_an_unchanged_order_is_not_sent_again(
    client: httpx2.AsyncClient, orders: OrderFactory
) -> None:
    path = f"{PATH}/{(await orders.a_placed()).id}"
    etag = (await client.get(path)).headers["etag"]

    unchanged = await client.get(path, headers={"If-None-Match": etag})
    await client.post(f"{path}/cancel")
    changed = await client.get(path, headers={"If-None-Match": etag})

    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == etag
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


async def test_an_unknown_order_is_not_found(client: httpx2.AsyncClient) -> None:
    response = await client.get(f"{PATH}/{uuid4()}")

    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("order_id", ["1", "not-an-id", "0" * 33])
async def test_a_malformed_id_is_refused(client: httpx2.AsyncClient, order_id: str) -> None:
    response = await client.get(f"{PATH}/{order_id}")

    assert response.status_code == 422
    assert response.json()["errors"][0]["loc"] == ["path", "order_id"]


async def test_an_order_of_someone_else_looks_like_one_that_does_not_exist(
    client: httpx2.AsyncClient, orders: OrderFactory, act_as_header: str
) -> None:
    order = await orders.owned_by("ada").a_placed()
    unknown = uuid4()

    own = await client.get(f"{PATH}/{order.id}", headers={act_as_header: "ada"})
    foreign = await client.get(f"{PATH}/{order.id}", headers={act_as_header: "bob"})
    missing = await client.get(f"{PATH}/{unknown}", headers={act_as_header: "bob"})

    assert own.status_code == 200
    assert foreign.status_code == missing.status_code == 404
    assert foreign.json()["type"] == missing.json()["type"]
