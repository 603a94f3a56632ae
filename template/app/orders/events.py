"""What happens to orders, as other parts of the service may subscribe to it."""

from decimal import Decimal
from typing import ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.core.events import Event


class PlacedLine(BaseModel):
    """One line of a placed order."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    sku: str
    quantity: int
    unit_price: Decimal


class OrderPlaced(Event):
    """An order was placed.

    Carries what it takes to work on the order, so that subscribers need not read it back, but no
    personal data: events travel further than the request that caused them.
    """

    name: ClassVar[str] = "order.placed"

    order_id: UUID
    owner_id: str
    lines: tuple[PlacedLine, ...]
    total: Decimal


class OrderConfirmed(Event):
    """A placed order was confirmed; it can no longer be cancelled."""

    name: ClassVar[str] = "order.confirmed"

    order_id: UUID
    owner_id: str


class OrderCancelled(Event):
    """A placed order was cancelled by its owner."""

    name: ClassVar[str] = "order.cancelled"

    order_id: UUID
    owner_id: str
