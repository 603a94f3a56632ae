"""What a worker does with an order is heard of by the clients of the service."""

import httpx2

from tests.factories.orders import order_body
from tests.fixtures.caller import Caller
from tests.fixtures.jobs import Work
from tests.fixtures.server import Serve
from tests.realtime.client import open_client


async def test_a_client_hears_of_the_confirmation_by_a_worker(
    serve: Serve, work: Work, caller: Caller
) -> None:
    async with (
        serve() as server,
        work(),
        open_client(server, caller.headers) as client,
        httpx2.AsyncClient(base_url=server.url, headers=dict(caller.headers)) as http,
    ):
        await client.subscribe("orders")
        order = (await http.post("/api/v1/orders", json=order_body())).raise_for_status().json()
        frames = [await client.receive() for _ in range(2)]
    assert {frame["event"] for frame in frames} == {"order.placed", "order.confirmed"}
    assert {frame["data"]["order_id"] for frame in frames} == {order["id"]}
