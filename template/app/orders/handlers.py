"""What follows from an order's events, after the commit and in transactions of its own."""

from datetime import timedelta
from functools import partial
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.events import EventBus
from app.core.threads import offload
from app.orders.events import OrderPlaced
from app.orders.receipt import render_receipt
from app.orders.service import OrderConfirmation

_SWEEP_SECONDS = 60
# By then the event's handler has had its turn, unless its process was killed.
_LEFT_BEHIND = timedelta(seconds=60)
# An order brings up to 100 lines, and reading them keeps others waiting.
_BATCH = 10

logger = structlog.get_logger(__name__)


async def confirm_placed_order(event: OrderPlaced, session: AsyncSession) -> None:
    """Render the receipt of a placed order, then confirm it."""
    # First, because the transaction begins with the session's first statement: neither a
    # connection nor a lock is held while the thread computes.
    receipt = await offload(render_receipt, event)
    await OrderConfirmation(session).confirm(event.order_id, receipt)


async def confirm_left_behind(database: Database) -> None:
    """Confirm orders whose event was lost, such as with a process that was killed.

    Each gets a transaction of its own. Several processes may do it at the same time.
    """
    after_id: UUID | None = None
    while True:
        async with database.read_only() as session:
            batch = await OrderConfirmation(session).list_left_behind(
                age=_LEFT_BEHIND, after_id=after_id, limit=_BATCH
            )
        for placed in batch:
            after_id = placed.order_id
            try:
                receipt = await offload(render_receipt, placed)
                async with database.transaction() as session:
                    await OrderConfirmation(session).confirm(after_id, receipt, skip_locked=True)
            except Exception:
                # One that cannot be confirmed must not keep the others from it.
                logger.exception("confirmation_failed", order_id=str(after_id))
        if len(batch) < _BATCH:
            return


def subscribe(events: EventBus) -> None:
    """Have placed orders confirmed in the background."""
    events.subscribe(OrderPlaced, confirm_placed_order)


def start_periodic(background: BackgroundRunner, database: Database) -> None:
    """Have orders that were left behind confirmed about once a minute."""
    background.every(_SWEEP_SECONDS, "confirm_left_behind", partial(confirm_left_behind, database))
