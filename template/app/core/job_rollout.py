"""Jobs of another release: for a time they are left to workers that know them."""

import random
from collections import defaultdict
from collections.abc import Collection
from datetime import timedelta

import structlog
from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import clock
from app.core.outbox import OutboxJob, is_held_up

# How often a job that this release does not know is offered again: at first, and at the most.
_LEAST_SECONDS, _MOST_SECONDS = 1, 60
# By then the relay of a release that knows the job has taken it.
_LEFT_TO_OTHERS = timedelta(seconds=1)
_REFUSED_AT_ONCE = 1000

logger = structlog.get_logger(__name__)


def next_offer(row: OutboxJob, lease: timedelta, rollout: timedelta) -> timedelta | None:
    """How long to leave a job to the workers of other releases; `None` when it is given up.

    About as long as it has waited already, so that a worker that comes has it soon.

    Args:
        row: As `outbox.begin_try` has given it.
        lease: With how much of a lease.
        rollout: How long workers of another release may take to come.
    """
    waited = timedelta()
    if row.refused_since and row.due_at:
        # A lease before it is due it was begun, by the same clock as it was refused.
        waited = row.due_at - lease - row.refused_since
    if waited >= rollout:
        return None
    ceiling = _ceiling(waited)
    return timedelta(seconds=random.uniform(ceiling / 2, ceiling))


def _ceiling(waited: timedelta) -> float:
    return min(max(waited.total_seconds(), _LEAST_SECONDS), _MOST_SECONDS)


def may_be_taken(names: Collection[str], rollout: timedelta) -> ColumnElement[bool]:
    """The condition for a job to be handed to the workers of the release that knows these names.

    It knows the job, or nobody has for so long that its workers give it up.
    """
    since = func.coalesce(OutboxJob.refused_since, clock())
    return or_(OutboxJob.name.in_(names), since <= clock(-rollout))


async def refuse_unknown(session: AsyncSession, names: Collection[str], rollout: timedelta) -> None:
    """Put off what is due and none of a worker's business, many jobs with one statement.

    One by one, through the queue, thousands of them would hold up the jobs that it knows.
    """
    found = await session.execute(
        select(OutboxJob.id, OutboxJob.name, OutboxJob.refused_since, clock())
        .where(
            OutboxJob.due_at <= clock(-_LEFT_TO_OTHERS),
            ~may_be_taken(names, rollout),
            ~is_held_up(),
        )
        .order_by(OutboxJob.due_at)
        .limit(_REFUSED_AT_ONCE)
        .with_for_update(skip_locked=True, of=OutboxJob)
    )
    ids: dict[int, list[int]] = defaultdict(list)
    refused: set[str] = set()
    for id_, name, since, now in found:
        # Whole powers of two: a few statements for all of them.
        ids[int(_ceiling(now - (since or now))).bit_length() - 1].append(id_)
        refused.add(name)
    for power, some in ids.items():
        await session.execute(
            update(OutboxJob)
            .where(OutboxJob.id.in_(some))
            .values(
                due_at=clock(timedelta(seconds=2**power)),
                refused_since=func.coalesce(OutboxJob.refused_since, clock()),
            )
            .execution_options(synchronize_session=False)
        )
    if refused:
        count = sum(map(len, ids.values()))
        logger.warning("jobs_of_another_release", names=sorted(refused)[:10], count=count)
