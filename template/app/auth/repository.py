"""Every query on sessions and their refresh tokens."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.models import RefreshToken
from app.core.database import clock
from app.core.pagination import PageParams, Slice, fetch_slice
from app.core.security import Role
from app.users.models import User


class Access(NamedTuple):
    """What a session's user may do, and until when without a refresh."""

    role: Role
    epoch: int
    expires_at: datetime


class SessionRepository:
    """The sessions of all users.

    Whatever changes sessions holds the lock of their user's row. Otherwise a rotation that is
    under way could add a token to a session that has just been ended.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get_locked_owner(self, token_hash: str) -> User | None:
        """Return whose token it is, if it is known; their sessions stay as they are meanwhile."""
        return await self._session.scalar(
            select(User)
            .join(RefreshToken, RefreshToken.user_id == User.id)
            .where(RefreshToken.token_hash == token_hash)
            # The weakest lock that excludes itself: inserting rows that refer to the user goes on.
            .with_for_update(of=User, key_share=True)
        )

    async def use(self, token_hash: str) -> RefreshToken | None:
        """Use a token up, in one statement; `None` when it is not good, or not any more.

        `used_at` is the time of that by the clock of the database, as all other times here.
        """
        return await self._session.scalar(
            update(RefreshToken)
            .where(RefreshToken.token_hash == token_hash, _is_alive())
            .values(used_at=clock())
            .returning(RefreshToken)
        )

    async def get(self, token_hash: str) -> RefreshToken:
        """Return a token that is known."""
        return (
            await self._session.scalars(
                select(RefreshToken).where(RefreshToken.token_hash == token_hash)
            )
        ).one()

    async def get_time(self) -> datetime:
        """Return the time by the clock of the database."""
        return (await self._session.scalars(select(clock()))).one()

    async def get_newest(self, family_id: UUID) -> RefreshToken | None:
        """Return the token that a session can be refreshed with; `None` when the session ended."""
        return await self._session.scalar(
            select(RefreshToken).where(RefreshToken.family_id == family_id, _is_alive())
        )

    def add(self, token: RefreshToken) -> None:
        """Insert a token with the next statement."""
        self._session.add(token)

    async def end(self, user_id: UUID, family_id: UUID) -> bool:
        """Revoke a session of the user; `False` when there is none that is alive."""
        newest = await self._session.execute(
            update(RefreshToken)
            .where(
                RefreshToken.user_id == user_id,
                RefreshToken.family_id == family_id,
                _is_newest(),
            )
            .values(revoked_at=clock())
            .returning(RefreshToken.id)
        )
        return newest.one_or_none() is not None

    async def end_all(self, user_id: UUID) -> None:
        """Revoke every session of the user, whose row must be locked."""
        await self._session.execute(
            update(RefreshToken)
            .where(RefreshToken.user_id == user_id, _is_newest())
            .values(revoked_at=clock())
        )

    async def list_newest(self, user_id: UUID, page: PageParams) -> Slice[RefreshToken]:
        """Return the newest token of each session of the user, the last used first."""
        statement = select(RefreshToken).where(RefreshToken.user_id == user_id, _is_alive())
        return await fetch_slice(self._session, statement, page)

    async def find_access(self, user_id: UUID, family_id: UUID) -> Access | None:
        """Return what the user of a session may do; `None` when either is not there any more."""
        row = (
            await self._session.execute(
                select(User.role, User.token_epoch, RefreshToken.expires_at)
                .join(RefreshToken, RefreshToken.user_id == User.id)
                .where(
                    User.id == user_id,
                    User.is_active,
                    RefreshToken.family_id == family_id,
                    _is_alive(),
                )
            )
        ).one_or_none()
        return None if row is None else Access(*row)

    async def delete_expired(self, limit: int) -> int:
        """Delete tokens that have expired, and return how many."""
        expired = (
            select(RefreshToken.id)
            .where(RefreshToken.expires_at <= clock())
            .limit(limit)
            # Several processes purge side by side instead of waiting for one another.
            .with_for_update(skip_locked=True)
        )
        deleted = await self._session.scalars(
            delete(RefreshToken)
            .where(RefreshToken.id.in_(expired))
            .returning(RefreshToken.id)
            .execution_options(synchronize_session=False)
        )
        return len(deleted.all())


def _is_newest() -> ColumnElement[bool]:
    # The condition of an index: used tokens, of which there are many, are not looked at.
    return RefreshToken.used_at.is_(None) & RefreshToken.revoked_at.is_(None)


def _is_alive() -> ColumnElement[bool]:
    return _is_newest() & (RefreshToken.expires_at > clock())
