"""Orders for tests: request bodies, and rows with named traits."""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from app.core.database import Database
from app.orders.models import Order, OrderLine, OrderStatus


def order_body(**changes: Any) -> dict[str, Any]:
    """The body of a valid request: two lines, 33.90 in total."""
    return {
        "customer_email": "ada@example.com",
        "lines": [
            {"sku": "TEA-250", "quantity": 2, "unit_price": "12.50"},
            {"sku": "MUG-WHITE", "quantity": 1, "unit_price": "8.90"},
        ],
        **changes,
    }


def line_body(**changes: Any) -> dict[str, Any]:
    """One line of such a body."""
    return {"sku": "TEA-250", "quantity": 1, "unit_price": "1.00", **changes}


@dataclass(frozen=True)
class OrderFactory:
    """Stores orders without an event, so that nothing confirms a placed one by itself."""

    database: Database
    owner_id: str

    async def placed(self, count: int = 1) -> list[Order]:
        """Orders that wait for their confirmation, oldest first."""
        return await self._store(OrderStatus.PLACED, count)

    async def a_placed(self) -> Order:
        """An order that waits for its confirmation."""
        return (await self.placed())[0]

    async def a_confirmed(self) -> Order:
        """An order that can no longer be cancelled."""
        return (await self._store(OrderStatus.CONFIRMED, 1))[0]

    async def a_cancelled(self) -> Order:
        """An order that was cancelled."""
        return (await self._store(OrderStatus.CANCELLED, 1))[0]

    def owned_by(self, owner_id: str) -> "OrderFactory":
        """The same factory for another owner."""
        return OrderFactory(self.database, owner_id)

    async def _store(self, status: OrderStatus, count: int) -> list[Order]:
        orders = [self._build(status) for _ in range(count)]
        async with self.database.transaction() as session:
            # One by one, so that ids grow in the order of the list.
            for order in orders:
                session.add(order)
                await session.flush()
        return orders

    def _build(self, status: OrderStatus) -> Order:
        now = datetime.now(UTC)
        return Order(
            owner_id=self.owner_id,
            customer_email="ada@example.com",
            status=status,
            lines=[
                OrderLine(position=0, sku="TEA-250", quantity=2, unit_price=Decimal("12.50")),
                OrderLine(position=1, sku="MUG-WHITE", quantity=1, unit_price=Decimal("8.90")),
            ],
            total=Decimal("33.90"),
            created_at=now,
            updated_at=now,
        )
