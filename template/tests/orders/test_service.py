from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.background import BackgroundRunner
from app.core.conditional import Preconditions
from app.core.database import Database
from app.core.errors import PreconditionFailedError
from app.core.events import Event, EventBus
from app.core.principal import Principal
from app.orders.events import OrderCancelled, OrderConfirmed, OrderPlaced, PlacedLine
from app.orders.exceptions import OrderNotCancellableError, OrderNotFoundError
from app.orders.models import Order, OrderStatus
from app.orders.schemas import OrderCreate
from app.orders.service import OrderConfirmation, OrderService, order_etag
from app.settings import Settings
from tests.factories.orders import OrderFactory, order_body

ADA = Principal("ada")
ANY_STATE = Preconditions()


@asynccontextmanager
async def observed(settings: Settings) -> AsyncIterator[tuple[Database, list[Event]]]:
    """A database, and the events that are delivered by the time the block has ended."""
    seen: list[Event] = []

    async def collect(event: Event, _: AsyncSession) -> None:
        seen.append(event)

    async with BackgroundRunner(settings) as background:
        events = EventBus(background)
        for event_type in (OrderPlaced, OrderConfirmed, OrderCancelled):
            events.subscribe(event_type, collect)
        database = Database(settings, events)
        yield database, seen
    await database.close()


async def test_placing_tells_everything_but_personal_data(settings: Settings) -> None:
    async with observed(settings) as (database, events), database.transaction() as session:
        placed = await OrderService(session, ADA).place(OrderCreate.model_validate(order_body()))

    assert events == [
        OrderPlaced(
            order_id=placed.id,
            owner_id="ada",
            lines=(
                PlacedLine(sku="TEA-250", quantity=2, unit_price=Decimal("12.50")),
                PlacedLine(sku="MUG-WHITE", quantity=1, unit_price=Decimal("8.90")),
            ),
            total=Decimal("33.90"),
        )
    ]
    assert placed.customer_email not in events[0].model_dump_json()


async def test_an_event_survives_being_sent_elsewhere() -> None:
    event = OrderPlaced(order_id=uuid4(), owner_id="ada", lines=(), total=Decimal("0.10"))

    assert OrderPlaced.model_validate_json(event.model_dump_json()) == event
    assert (OrderPlaced.name, OrderConfirmed.name, OrderCancelled.name) == (
        "order.placed",
        "order.confirmed",
        "order.cancelled",
    )


async def test_cancelling_tells_so_once(settings: Settings, orders: OrderFactory) -> None:
    order = await orders.owned_by("ada").a_placed()
    async with observed(settings) as (database, events):
        async with database.transaction() as session:
            await OrderService(session, ADA).cancel(order.id, ANY_STATE)
        with pytest.raises(OrderNotCancellableError):
            async with database.transaction() as session:
                await OrderService(session, ADA).cancel(order.id, ANY_STATE)

    assert events == [OrderCancelled(order_id=order.id, owner_id="ada")]


async def test_confirming_tells_so_once(settings: Settings, orders: OrderFactory) -> None:
    order = await orders.owned_by("ada").a_placed()
    async with observed(settings) as (database, events):
        for _ in range(2):
            async with database.transaction() as session:
                await OrderConfirmation(session).confirm(order.id, b"receipt")

    assert events == [OrderConfirmed(order_id=order.id, owner_id="ada")]


async def test_nothing_is_told_after_a_rollback(settings: Settings, orders: OrderFactory) -> None:
    order = await orders.owned_by("ada").a_placed()
    async with observed(settings) as (database, events):
        with pytest.raises(ZeroDivisionError):
            async with database.transaction() as session:
                await OrderService(session, ADA).cancel(order.id, ANY_STATE)
                raise ZeroDivisionError

    assert events == []


async def test_an_order_belongs_to_who_placed_it(database: Database) -> None:
    async with database.transaction() as session:
        order = await OrderService(session, ADA).place(OrderCreate.model_validate(order_body()))

    async with database.read_only() as session:
        found = await OrderService(session, ADA).get(order.id)
        assert (found.id, found.owner_id) == (order.id, "ada")
        with pytest.raises(OrderNotFoundError):
            await OrderService(session, Principal("bob")).get(order.id)


@pytest.mark.parametrize(
    ("if_match", "refusal"),
    [
        (lambda _: None, OrderNotCancellableError),
        (lambda _: frozenset("*"), OrderNotCancellableError),
        (lambda order: frozenset([order_etag(order)]), PreconditionFailedError),
    ],
    ids=["any state", "any version", "that version"],
)
async def test_an_order_changed_since_it_was_read_is_not_overwritten(
    database: Database,
    orders: OrderFactory,
    if_match: Callable[[Order], frozenset[str] | None],
    refusal: type[Exception],
) -> None:
    order = await orders.owned_by("ada").a_placed()
    async with database.read_only() as session:
        outdated = await OrderService(session, ADA).get(order.id)
    async with database.transaction() as session:
        await OrderConfirmation(session).confirm(order.id, b"receipt")

    with pytest.raises(refusal):
        async with database.transaction() as session:
            # What a session holds already is not read anew.
            session.add(outdated)
            preconditions = Preconditions(if_match=if_match(outdated))
            await OrderService(session, ADA).cancel(order.id, preconditions)

    async with database.read_only() as session:
        assert (await OrderService(session, ADA).get(order.id)).status is OrderStatus.CONFIRMED


async def test_confirming_notes_when_it_was(database: Database, orders: OrderFactory) -> None:
    order = await orders.owned_by("ada").a_placed()
    async with database.transaction() as session:
        await OrderConfirmation(session).confirm(order.id, b"receipt")

    async with database.read_only() as session:
        assert (await OrderService(session, ADA).get(order.id)).updated_at > order.updated_at
