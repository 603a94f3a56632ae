"""What follows from an order's events, as jobs that survive the process that caused them."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import dead_letters
from app.core.events import EventBus
from app.core.jobs import JobContext, Tick, job, periodic
from app.core.threads import offload
from app.orders.events import OrderPlaced
from app.orders.receipt import render_receipt
from app.orders.service import OrderConfirmation

# By then a worker has had its turn, unless there is no job.
_LEFT_BEHIND = timedelta(minutes=5)
_BATCH = 100


@job(name="orders.confirm", payload=OrderPlaced, timeout_seconds=10)
async def confirm_order(order: OrderPlaced, context: JobContext) -> None:
    """Render the receipt of a placed order, then confirm it."""
    # First, because the transaction begins with the session's first statement: neither a
    # connection nor a lock is held while the thread computes.
    receipt = await offload(render_receipt, order)
    await OrderConfirmation(context.session).confirm(order.order_id, receipt)


@periodic(name="orders.adopt_left_behind", minutes=range(0, 60, 5))
async def adopt_left_behind(_: Tick, context: JobContext) -> None:
    """Hand over orders that have no job, such as those placed before the service had any."""
    after_id: UUID | None = None
    while True:
        async with context.database.transaction() as session:
            batch = await OrderConfirmation(session).list_left_behind(
                age=_LEFT_BEHIND, after_id=after_id, limit=_BATCH
            )
            ids = [_job_id(placed) for placed in batch]
            given_up = await dead_letters.find_job_ids(session, ids)
            for placed in batch:
                # Or one that fails for good would become a dead letter again and again.
                if _job_id(placed) not in given_up:
                    await enqueue_confirmation(placed, session)
        if len(batch) < _BATCH:
            return
        after_id = batch[-1].order_id


async def enqueue_confirmation(event: OrderPlaced, session: AsyncSession) -> None:
    """Hand over the confirmation together with the order itself."""
    await confirm_order.enqueue(
        session,
        event,
        # An order is confirmed once, however often it is announced.
        job_id=_job_id(event),
        ordering_key=f"order:{event.order_id}",
    )


def _job_id(event: OrderPlaced) -> str:
    return f"orders.confirm:{event.order_id}"


def subscribe(events: EventBus) -> None:
    """Have placed orders confirmed by the workers."""
    events.subscribe_before_commit(OrderPlaced, enqueue_confirmation)
