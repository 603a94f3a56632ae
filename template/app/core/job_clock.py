"""The clock of periodic jobs: enqueues them when they are due, in every worker at once."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import select

from app.core.database import Database, clock
from app.core.jobs import PeriodicJob, Tick

_LOOK_SECONDS = 1.0
# A restart may fall on the very minute. Finished jobs, and so the ids of the ones that another
# worker has enqueued, are kept for longer than this.
_LOOK_BACK = timedelta(seconds=60)

logger = structlog.get_logger(__name__)


class JobClock:
    """Enqueues periodic jobs; of several clocks with the same jobs the first to come does.

    Args:
        periodic: What to enqueue.
        database: Where the outbox is.
    """

    def __init__(self, periodic: Sequence[PeriodicJob], database: Database) -> None:
        self._periodic = periodic
        self._database = database
        self._started_at = time.monotonic()
        self._looked_at: datetime | None = None

    async def run(self) -> None:
        """Look at the time until cancelled; survives outages of the database."""
        while True:
            try:
                # The database's, or a worker whose clock is ahead would enqueue them too early for
                # all.
                async with self._database.read_only() as session:
                    now = (await session.scalars(select(clock()))).one()
                await self.look(now)
            except Exception as error:  # noqa: BLE001
                logger.warning(
                    "periodic_jobs_not_enqueued", error=f"{type(error).__name__}: {error}"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self, now: datetime) -> None:
        """Enqueue what became due since the last look that succeeded; at most one of each kind."""
        after = self._looked_at
        if after is None:
            # The database may have been away since the start.
            after = now - timedelta(seconds=time.monotonic() - self._started_at) - _LOOK_BACK
        for each in self._periodic:
            if moment := each.latest(after, now):
                async with self._database.transaction() as session:
                    await each.job.enqueue(
                        session,
                        Tick(scheduled_for=moment),
                        # The same in every worker.
                        job_id=f"{each.job.name}:{moment:%Y-%m-%dT%H:%M}",
                    )
        self._looked_at = max(after, now)
