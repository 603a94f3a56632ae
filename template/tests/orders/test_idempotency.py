from collections import Counter
from collections.abc import Awaitable, Callable

import anyio
import httpx2

from tests.factories.orders import order_body

PATH = "/api/v1/orders"


async def test_a_repeated_request_is_answered_alike_and_places_one_order(
    client: httpx2.AsyncClient, count_orders: Callable[[], Awaitable[int]]
) -> None:
    headers = {"Idempotency-Key": "once"}

    first = await client.post(PATH, json=order_body(), headers=headers)
    second = await client.post(PATH, json=order_body(), headers=headers)

    assert first.status_code == second.status_code == 201
    assert first.content == second.content
    for name in ("location", "etag", "content-type"):
        assert first.headers[name] == second.headers[name]
    assert await count_orders() == 1


async def test_a_key_is_refused_with_another_body(
    client: httpx2.AsyncClient, count_orders: Callable[[], Awaitable[int]]
) -> None:
    headers = {"Idempotency-Key": "once"}
    await client.post(PATH, json=order_body(), headers=headers)

    response = await client.post(
        PATH, json=order_body(customer_email="bob@example.com"), headers=headers
    )

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert await count_orders() == 1


async def test_without_a_key_each_request_places_an_order(
    client: httpx2.AsyncClient, count_orders: Callable[[], Awaitable[int]]
) -> None:
    for _ in range(2):
        assert (await client.post(PATH, json=order_body())).status_code == 201

    assert await count_orders() == 2


async def test_a_key_belongs_to_its_principal(
    client: httpx2.AsyncClient,
    act_as_header: str,
    count_orders: Callable[[], Awaitable[int]],
) -> None:
    answers = [
        await client.post(
            PATH, json=order_body(), headers={"Idempotency-Key": "once", act_as_header: name}
        )
        for name in ("ada", "bob")
    ]

    assert [answer.status_code for answer in answers] == [201, 201]
    assert await count_orders() == 2


async def test_a_refused_request_does_not_use_up_its_key(client: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": "once"}
    refused = await client.post(PATH, json=order_body(lines=[]), headers=headers)

    accepted = await client.post(PATH, json=order_body(), headers=headers)

    assert (refused.status_code, accepted.status_code) == (422, 201)


async def test_concurrent_requests_with_one_key_place_one_order(
    client: httpx2.AsyncClient, count_orders: Callable[[], Awaitable[int]]
) -> None:
    answers: list[httpx2.Response] = []

    async def place() -> None:
        answers.append(
            await client.post(PATH, json=order_body(), headers={"Idempotency-Key": "once"})
        )

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(place)

    # Whoever waits too long for the first is told to come back; nobody places a second order.
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[201] >= 1
    assert statuses.keys() <= {201, 409}
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
    assert await count_orders() == 1
