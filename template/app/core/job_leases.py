"""The leases on the jobs that a worker has in hand."""

import asyncio
import time
from datetime import timedelta

import structlog
from anyio import CancelScope
from anyio.from_thread import start_blocking_portal

from app.core import outbox
from app.core.database import Database
from app.core.outbox import Ticket

# After an outage those who hold leases have to be faster than the relays, who find them ended.
_RETRY_SECONDS = 0.25

logger = structlog.get_logger(__name__)


class JobLeases:
    """Tells the relays of all workers which jobs are being worked on.

    Args:
        database: Where the outbox is.
        seconds: How long a job stays with a worker that gives no sign of life.
    """

    def __init__(self, database: Database, seconds: float) -> None:
        self._database = database
        self._seconds = seconds
        # Each with the moment (of the monotonic clock) until which its lease is renewed.
        self._held: dict[Ticket, float] = {}

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._held

    def hold(self, ticket: Ticket, seconds: float = 0) -> None:
        """Renew the lease of this try for so long, but no longer than until `release`."""
        self._held[ticket] = time.monotonic() + seconds

    def release(self, ticket: Ticket) -> None:
        """Renew it no more."""
        self._held.pop(ticket, None)

    async def keep(self) -> None:
        """Renew the leases until cancelled.

        In a thread: a handler that blocks the event loop must not seem dead, nor its neighbours.
        """
        with start_blocking_portal() as portal:
            await asyncio.wrap_future(portal.start_task_soon(self._keep))

    async def _keep(self) -> None:
        # Connections belong to the event loop that opened them.
        database = self._database.twin()
        try:
            renewed = True
            while True:
                await asyncio.sleep(self._seconds / 4 if renewed else _RETRY_SECONDS)
                renewed = await self._renew(database)
        finally:
            with CancelScope(shield=True):
                await database.close()

    async def _renew(self, database: Database) -> bool:
        now = time.monotonic()
        # A copy at once: the jobs come and go in another thread.
        held = [ticket for ticket, until in list(self._held.items()) if now < until]
        if not held:
            return True
        try:
            async with database.transaction() as session:
                await outbox.keep(session, held, timedelta(seconds=self._seconds))
        except Exception as error:  # noqa: BLE001
            logger.warning("leases_not_kept", error=f"{type(error).__name__}: {error}")
            return False
        return True
