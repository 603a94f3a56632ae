"""What follows for sessions from what happens to users, and what is purged."""

from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.repository import SessionRepository
from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.events import EventBus
from app.users.events import AccessChanged

_PURGE_SECONDS = 3600
_PURGE_BATCH = 1000

logger = structlog.get_logger(__name__)


async def end_sessions(event: AccessChanged, session: AsyncSession) -> None:
    """Revoke the user's refresh tokens in the transaction that ended their access."""
    if event.ends_sessions:
        await SessionRepository(session).end_all(event.user_id)


async def purge_expired_tokens(database: Database) -> None:
    """Delete refresh tokens that have expired, in short transactions."""
    purged, batch = 0, _PURGE_BATCH
    while batch == _PURGE_BATCH:
        async with database.transaction() as session:
            batch = await SessionRepository(session).delete_expired(_PURGE_BATCH)
        purged += batch
    if purged:
        logger.info("auth.refresh_tokens_purged", count=purged)


def subscribe(events: EventBus) -> None:
    """Have sessions end with the access of their users."""
    events.subscribe_before_commit(AccessChanged, end_sessions)


def start_periodic(background: BackgroundRunner, database: Database) -> None:
    """Have expired tokens deleted about once an hour."""
    background.every(
        _PURGE_SECONDS, "purge_refresh_tokens", partial(purge_expired_tokens, database)
    )
