"""The channel `orders`: tells owners what happens to their orders."""

from typing import ClassVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.channels import Channel, Message
from app.core.events import EventBus, record
from app.orders.events import OrderCancelled, OrderConfirmed, OrderPlaced
from app.orders.models import OrderStatus
from app.orders.schemas import Total


class OrderPlacedMessage(Message):
    """An order of yours was placed."""

    name: ClassVar[str] = OrderPlaced.name

    order_id: UUID
    status: OrderStatus = OrderStatus.PLACED
    total: Total


class OrderConfirmedMessage(Message):
    """An order of yours was confirmed."""

    name: ClassVar[str] = OrderConfirmed.name

    order_id: UUID
    status: OrderStatus = OrderStatus.CONFIRMED


class OrderCancelledMessage(Message):
    """An order of yours was cancelled."""

    name: ClassVar[str] = OrderCancelled.name

    order_id: UUID
    status: OrderStatus = OrderStatus.CANCELLED


# Of a missed step in an order's life the client should know, so that it reads the order again:
# whoever does not keep up is closed.
ORDERS = Channel(
    "orders",
    messages=(OrderPlacedMessage, OrderConfirmedMessage, OrderCancelledMessage),
    is_private=True,
)


async def _placed(event: OrderPlaced, session: AsyncSession) -> None:
    message = OrderPlacedMessage(order_id=event.order_id, total=event.total)
    record(session, ORDERS.publication(message, to=event.owner_id))


async def _confirmed(event: OrderConfirmed, session: AsyncSession) -> None:
    message = OrderConfirmedMessage(order_id=event.order_id)
    record(session, ORDERS.publication(message, to=event.owner_id))


async def _cancelled(event: OrderCancelled, session: AsyncSession) -> None:
    message = OrderCancelledMessage(order_id=event.order_id)
    record(session, ORDERS.publication(message, to=event.owner_id))


def subscribe(events: EventBus) -> None:
    """Have what happens to orders published."""
    events.subscribe_before_commit(OrderPlaced, _placed)
    events.subscribe_before_commit(OrderConfirmed, _confirmed)
    events.subscribe_before_commit(OrderCancelled, _cancelled)
