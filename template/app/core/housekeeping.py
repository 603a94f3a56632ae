"""What core itself has to do from time to time, as jobs."""

from datetime import timedelta

import structlog

from app.core import outbox
from app.core.jobs import JobContext, Tick, periodic

logger = structlog.get_logger(__name__)


@periodic(name="core.purge_outbox", minutes=[17])
async def purge_outbox(_: Tick, context: JobContext) -> None:
    """Delete the jobs that were done longer than `JOB_RETENTION_SECONDS` ago."""
    keep_for = timedelta(seconds=context.settings.JOB_RETENTION_SECONDS)
    purged = 0
    # Short transactions instead of the job's own: nobody waits for locks on many rows.
    while True:
        async with context.database.transaction() as session:
            batch = await outbox.purge(session, keep_for)
        purged += batch
        if batch == 0:
            break
    logger.info("outbox_purged", count=purged)
