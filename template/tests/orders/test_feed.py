"""The channel of the orders: their owners hear of each step once it is committed."""

import json
from typing import Any

import httpx2

from app.core.channels import Channel
from app.core.database import Database
from app.core.events import record
from app.orders.events import OrderConfirmed
from app.orders.feed import ORDERS
from app.realtime.hub import Hub
from tests.factories.orders import OrderFactory, order_body
from tests.fixtures.caller import Caller
from tests.fixtures.server import Serve
from tests.realtime.client import open_client

PATH = "/api/v1/orders"


class Ear:
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def offer(self, channel: Channel, frame: str) -> None:
        self.heard.append(json.loads(frame))


async def test_a_client_hears_of_the_order_that_it_places(serve: Serve, caller: Caller) -> None:
    async with (
        serve() as server,
        open_client(server, caller.headers) as client,
        httpx2.AsyncClient(base_url=server.url, headers=dict(caller.headers)) as http,
    ):
        await client.subscribe("orders")
        order = (await http.post(PATH, json=order_body())).raise_for_status().json()
        assert await client.receive() == {
            "type": "event",
            "channel": "orders",
            "event": "order.placed",
            "data": {"order_id": order["id"], "status": "placed", "total": "33.90"},
        }


async def test_owners_hear_of_their_orders_and_of_no_others(
    client: httpx2.AsyncClient,
    lifespan_state: dict[str, Any],
    database: Database,
    orders: OrderFactory,
    caller: Caller,
) -> None:
    hub: Hub = lifespan_state["hub"]
    mine, theirs = Ear(), Ear()
    await hub.listen(ORDERS, ORDERS.topic(caller.id), mine)
    await hub.listen(ORDERS, ORDERS.topic("somebody-else"), theirs)
    order = await orders.a_placed()
    (await client.post(f"{PATH}/{order.id}/cancel")).raise_for_status()
    # What is rolled back, such as a second cancellation, is not heard of.
    assert (await client.post(f"{PATH}/{order.id}/cancel")).status_code == 409
    async with database.transaction() as session:
        record(session, OrderConfirmed(order_id=order.id, owner_id="somebody-else"))
    data = {"order_id": str(order.id)}
    [cancelled], [confirmed] = mine.heard, theirs.heard
    assert cancelled["event"] == "order.cancelled"
    assert cancelled["data"] == {**data, "status": "cancelled"}
    assert confirmed["event"] == "order.confirmed"
    assert confirmed["data"] == {**data, "status": "confirmed"}
