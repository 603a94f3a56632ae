import lzma
import threading
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from uuid import UUID, uuid4

import anyio
import httpx2
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from app.core.database import Database
from app.core.principal import ANONYMOUS
from app.orders import handlers
from app.orders.events import OrderPlaced, PlacedLine
from app.orders.models import Order, OrderStatus
from app.orders.schemas import OrderCreate
from app.orders.service import OrderService
from tests.factories.orders import OrderFactory, order_body
from tests.orders.conftest import eventually

PATH = "/api/v1/orders"
Stored = Callable[[UUID], Awaitable[Order]]


def placed_event(order: Order) -> OrderPlaced:
    return OrderPlaced(
        order_id=order.id,
        owner_id=order.owner_id,
        lines=tuple(PlacedLine.model_validate(line) for line in order.lines),
        total=order.total,
    )


def is_confirmed(order: Order) -> bool:
    return order.status is OrderStatus.CONFIRMED


class SlowRendering:
    """A rendering that blocks its thread until it is let go."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, _: OrderPlaced) -> bytes:
        self.started.set()
        assert self.let_go.wait(timeout=10), "the event loop is blocked"
        return b"receipt"


@pytest.fixture
def slow_rendering(monkeypatch: pytest.MonkeyPatch) -> SlowRendering:
    rendering = SlowRendering()
    monkeypatch.setattr(handlers, "render_receipt", rendering)
    return rendering


async def test_a_placed_order_is_confirmed_in_the_background(
    client: httpx2.AsyncClient, stored: Stored
) -> None:
    placed = await client.post(PATH, json=order_body())
    order_id = UUID(placed.json()["id"])

    order = await eventually(lambda: stored(order_id), is_confirmed)

    assert order.receipt is not None
    assert "Total 33.90" in lzma.decompress(order.receipt).decode()
    read = await client.get(placed.headers["location"])
    assert read.json()["status"] == "confirmed"
    assert read.json()["updated_at"] > placed.json()["updated_at"]
    assert read.headers["etag"] != placed.headers["etag"]


async def test_the_answer_does_not_wait_for_the_confirmation(
    client: httpx2.AsyncClient, stored: Stored, slow_rendering: SlowRendering
) -> None:
    placed = await client.post(PATH, json=order_body())

    assert placed.status_code == 201
    assert placed.json()["status"] == "placed"
    slow_rendering.let_go.set()
    await eventually(lambda: stored(UUID(placed.json()["id"])), is_confirmed)


async def test_nothing_is_confirmed_before_the_commit(
    database: Database, stored: Stored, slow_rendering: SlowRendering
) -> None:
    slow_rendering.let_go.set()
    async with database.transaction() as session:
        service = OrderService(session, ANONYMOUS)
        order = await service.place(OrderCreate.model_validate(order_body()))
        await anyio.sleep(0.1)
        assert not slow_rendering.started.is_set()

    await eventually(lambda: stored(order.id), is_confirmed)


async def test_nothing_is_confirmed_after_a_rollback(
    database: Database, slow_rendering: SlowRendering
) -> None:
    slow_rendering.let_go.set()
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as session:
            service = OrderService(session, ANONYMOUS)
            await service.place(OrderCreate.model_validate(order_body()))
            raise ZeroDivisionError

    await anyio.sleep(0.1)
    assert not slow_rendering.started.is_set()


async def test_rendering_a_receipt_blocks_neither_the_event_loop_nor_other_writers(
    client: httpx2.AsyncClient, stored: Stored, slow_rendering: SlowRendering
) -> None:
    first = await client.post(PATH, json=order_body())
    await anyio.to_thread.run_sync(slow_rendering.started.wait)

    second = await client.post(PATH, json=order_body())

    assert second.status_code == 201
    slow_rendering.let_go.set()
    for placed in (first, second):
        await eventually(partial(stored, UUID(placed.json()["id"])), is_confirmed)


async def test_a_repeated_event_changes_nothing(
    database: Database, orders: OrderFactory, stored: Stored
) -> None:
    order = await orders.a_placed()
    for _ in range(2):
        async with database.transaction() as session:
            await handlers.confirm_placed_order(placed_event(order), session)

    assert (await stored(order.id)).version == order.version + 1


async def test_a_cancelled_order_is_left_alone(
    database: Database, orders: OrderFactory, stored: Stored
) -> None:
    order = await orders.a_cancelled()
    async with database.transaction() as session:
        await handlers.confirm_placed_order(placed_event(order), session)

    assert (await stored(order.id)).status is OrderStatus.CANCELLED
    assert (await stored(order.id)).receipt is None


async def test_an_order_that_is_gone_is_no_error(database: Database) -> None:
    gone = OrderPlaced(order_id=uuid4(), owner_id="ada", lines=(), total=Decimal(0))
    async with database.transaction() as session:
        await handlers.confirm_placed_order(gone, session)


async def test_the_log_lines_of_the_confirmation_carry_the_id_of_the_request(
    client: httpx2.AsyncClient, stored: Stored
) -> None:
    with capture_logs(processors=[merge_contextvars]) as lines:
        headers = {"X-Request-ID": "place-1"}
        placed = await client.post(PATH, json=order_body(), headers=headers)
        await eventually(lambda: stored(UUID(placed.json()["id"])), is_confirmed)

    by_event = {line["event"]: line for line in lines}
    # One is written in a thread, the other on the event loop.
    for name in ("receipt_rendered", "confirming_order"):
        assert by_event[name]["request_id"] == "place-1"
        assert by_event[name]["order_id"] == placed.json()["id"]
