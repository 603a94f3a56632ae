"""What the outbox and the dead letters hold, for the metrics."""

from math import nan

from prometheus_client import Gauge
from sqlalchemy import func, select

from app.core.database import Database, clock
from app.core.dead_letters import DeadLetter
from app.core.outbox import OutboxJob

_WAITING = Gauge(
    "outbox_jobs",
    "Jobs that are not done: due now, or later (in hand, or to be tried again).",
    ["state"],
    multiprocess_mode="livemostrecent",
)
_OVERDUE = Gauge(
    "outbox_overdue_seconds",
    "For how long the oldest job has been due without a worker having it in hand.",
    multiprocess_mode="livemostrecent",
)
_DEAD_LETTERS = Gauge(
    "dead_letters", "Jobs that were given up.", multiprocess_mode="livemostrecent"
)


class Backlog:
    """Asks the database; every process would answer the same, so only whoever is read asks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def measure(self) -> None:
        """Set the metrics; to what nobody knows when the database does not answer."""
        due = later = overdue = letters = nan
        try:
            async with self._database.read_only() as session:
                is_due = OutboxJob.due_at <= clock()
                found = await session.execute(
                    select(
                        func.count().filter(is_due),
                        func.count(),
                        func.min(OutboxJob.due_at),
                        clock(),
                    ).where(OutboxJob.due_at.is_not(None))
                )
                due, count, oldest, now = found.one()
                later = count - due
                overdue = max(0.0, (now - oldest).total_seconds()) if oldest else 0.0
                letters = await session.scalar(select(func.count()).select_from(DeadLetter)) or 0
        finally:
            _WAITING.labels("due").set(due)
            _WAITING.labels("later").set(later)
            _OVERDUE.set(overdue)
            _DEAD_LETTERS.set(letters)
