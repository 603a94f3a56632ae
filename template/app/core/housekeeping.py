"""What core itself has to do from time to time, as jobs."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import dead_letters, outbox
from app.core.database import Database
from app.core.jobs import JobContext, Tick, periodic

logger = structlog.get_logger(__name__)


@periodic(name="core.purge_outbox", minutes=[17])
async def purge_outbox(_: Tick, context: JobContext) -> None:
    """Delete the jobs that were done longer than `JOB_RETENTION_SECONDS` ago."""
    count = await _purge(context.database, outbox.purge, context.settings.JOB_RETENTION_SECONDS)
    logger.info("outbox_purged", count=count)


@periodic(name="core.purge_dead_letters", minutes=[23])
async def purge_dead_letters(_: Tick, context: JobContext) -> None:
    """Delete the dead letters that are older than `DEAD_LETTER_RETENTION_SECONDS`."""
    keep_seconds = context.settings.DEAD_LETTER_RETENTION_SECONDS
    if count := await _purge(context.database, dead_letters.purge, keep_seconds):
        logger.warning("dead_letters_purged", count=count)


async def _purge(
    database: Database,
    purge_batch: Callable[[AsyncSession, timedelta], Awaitable[int]],
    keep_seconds: int,
) -> int:
    purged = 0
    # Short transactions instead of the job's own: nobody waits for locks on many rows.
    while True:
        async with database.transaction() as session:
            batch = await purge_batch(session, timedelta(seconds=keep_seconds))
        purged += batch
        if batch == 0:
            return purged
