"""What follows from an order's events, after the commit and in transactions of its own."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.events import EventBus
from app.core.threads import offload
from app.orders.events import OrderPlaced
from app.orders.receipt import render_receipt
from app.orders.service import OrderConfirmation


async def confirm_placed_order(event: OrderPlaced, session: AsyncSession) -> None:
    """Render the receipt of a placed order, then confirm it."""
    # First, because the transaction begins with the session's first statement: neither a
    # connection nor a lock is held while the thread computes.
    receipt = await offload(render_receipt, event)
    await OrderConfirmation(session).confirm(event.order_id, receipt)


def subscribe(events: EventBus) -> None:
    """Have placed orders confirmed in the background."""
    events.subscribe(OrderPlaced, confirm_placed_order)
