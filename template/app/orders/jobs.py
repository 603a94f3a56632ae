"""What follows from an order's events, as jobs that survive the process that caused them."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import outbox
from app.core.dead_letters import has_dead_letter
from app.core.events import EventBus
from app.core.jobs import JobContext, Tick, job, periodic
from app.core.threads import offload
from app.orders.events import OrderPlaced
from app.orders.models import Order
from app.orders.receipt import render_receipt
from app.orders.service import OrderConfirmation

# By then a worker has had its turn, unless there is no job.
_LEFT_BEHIND = timedelta(minutes=5)
# An order brings up to 100 lines, and reading them keeps others waiting.
_BATCH = 10
# What comes late to a service that had no jobs before needs some runs.
_BATCHES = 500


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
    job_id = outbox.job_id_column(confirm_order.name, Order.id)
    # One that fails for good must not become a dead letter again and again.
    without_job = ~outbox.has_job(job_id) & ~has_dead_letter(job_id)
    after_id: UUID | None = None
    for _batch in range(_BATCHES):
        # Mostly there are none, which costs neither locks nor a write.
        async with context.database.read_only() as session:
            batch = await OrderConfirmation(session).list_left_behind(
                without_job, age=_LEFT_BEHIND, after_id=after_id, limit=_BATCH
            )
        async with context.database.transaction() as session:
            for placed in batch:
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
        job_id=outbox.job_id(confirm_order.name, event.order_id),
        ordering_key=f"order:{event.order_id}",
    )


def subscribe(events: EventBus) -> None:
    """Have placed orders confirmed by the workers."""
    events.subscribe_before_commit(OrderPlaced, enqueue_confirmation)
