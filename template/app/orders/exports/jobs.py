"""The jobs behind exports."""

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import outbox
from app.core.events import EventBus
from app.core.jobs import JobContext, RetryPolicy, Tick, job, periodic
from app.orders.exports.models import OrderExport
from app.orders.exports.service import (
    ExportMaker,
    ExportRequested,
    delete_old,
    fail_lost,
    mark_failed,
)

LANES = 4
"""How many exports all workers together make at the same time."""

logger = structlog.get_logger(__name__)


@job(
    name="orders.export",
    payload=ExportRequested,
    retry=RetryPolicy(max_tries=3, base_seconds=5),
    timeout_seconds=60,
)
async def make_export(request: ExportRequested, context: JobContext) -> None:
    """Make the file of an export."""
    maker = ExportMaker(context.database, context.session)
    await maker.make(request.export_id, request.owner_id)


@make_export.on_dead_letter
async def give_up_export(request: ExportRequested, session: AsyncSession) -> None:
    """Let the owner know instead of having them wait for ever."""
    await mark_failed(session, request.export_id)


@periodic(name="orders.fail_lost_exports", minutes=range(0, 60, 5))
async def fail_lost_exports(_: Tick, context: JobContext) -> None:
    """Give up what `give_up_export` was not told of, such as a job whose payload did not fit."""
    job_id = outbox.job_id_column(make_export.name, OrderExport.id)
    await fail_lost(context.session, outbox.has_unfinished_job(job_id))


@periodic(name="orders.delete_old_exports", minutes=[43])
async def delete_old_exports(_: Tick, context: JobContext) -> None:
    """Delete the files that have been kept long enough."""
    if deleted := await delete_old(context.database):
        logger.info("order_exports_deleted", count=deleted)


async def enqueue_export(event: ExportRequested, session: AsyncSession) -> None:
    """Hand over the making of a file together with its record."""
    await make_export.enqueue(
        session,
        event,
        job_id=outbox.job_id(make_export.name, event.export_id),
        # One after the other in each lane, so that long ones leave workers to other jobs.
        ordering_key=f"{make_export.name}:{event.export_id.int % LANES}",
    )


def subscribe(events: EventBus) -> None:
    """Have requested exports made by the workers."""
    events.subscribe_before_commit(ExportRequested, enqueue_export)
