"""What follows from an order's events, as jobs that survive the process that caused them."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.events import EventBus
from app.core.jobs import JobContext, job
from app.core.threads import offload
from app.orders.events import OrderPlaced
from app.orders.receipt import render_receipt
from app.orders.service import OrderConfirmation


@job(name="orders.confirm", payload=OrderPlaced, timeout_seconds=10)
async def confirm_order(order: OrderPlaced, context: JobContext) -> None:
    """Render the receipt of a placed order, then confirm it."""
    # First, because the transaction begins with the session's first statement: neither a
    # connection nor a lock is held while the thread computes.
    receipt = await offload(render_receipt, order)
    await OrderConfirmation(context.session).confirm(order.order_id, receipt)


async def enqueue_confirmation(event: OrderPlaced, session: AsyncSession) -> None:
    """Hand over the confirmation together with the order itself."""
    await confirm_order.enqueue(
        session,
        event,
        # An order is confirmed once, however often it is announced.
        job_id=f"orders.confirm:{event.order_id}",
        ordering_key=f"order:{event.order_id}",
    )


def subscribe(events: EventBus) -> None:
    """Have placed orders confirmed by the workers."""
    events.subscribe_before_commit(OrderPlaced, enqueue_confirmation)
