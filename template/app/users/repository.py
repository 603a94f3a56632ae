"""Every query on users."""

from collections.abc import Collection
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import is_unique_violation
from app.core.pagination import PageParams, Slice, fetch_slice
from app.users.exceptions import EmailTakenError
from app.users.models import User


class UserRepository:
    """The users of the service."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, user_id: UUID) -> User | None:
        """Return the user, or `None` when there is none with this id."""
        return await self._session.get(User, user_id)

    async def get_locked(self, user_id: UUID) -> User | None:
        """Return the user; nobody else changes them until the transaction ends."""
        return await self._session.scalar(select(User).where(User.id == user_id).with_for_update())

    async def get_all_locked(self, user_ids: Collection[UUID]) -> dict[UUID, User]:
        """Return those of the users that there are, locked in one order: no deadlock."""
        users = await self._session.scalars(
            select(User).where(User.id.in_(user_ids)).order_by(User.id).with_for_update()
        )
        return {user.id: user for user in users}

    async def get_by_email(self, email: str) -> User | None:
        """Return the user with this address, which must be as `AccountEmail` writes it."""
        return await self._session.scalar(select(User).where(User.email == email))

    async def list_newest(self, page: PageParams) -> Slice[User]:
        """Return a page of users, newest first."""
        return await fetch_slice(self._session, select(User), page)

    async def add(self, user: User) -> None:
        """Insert a new user.

        Raises:
            EmailTakenError: somebody has this address; the session goes on.
        """
        try:
            async with self._session.begin_nested():
                self._session.add(user)
        except IntegrityError as error:
            if is_unique_violation(error, "uq_users_email"):
                raise EmailTakenError("There is an account with this address.") from None
            raise

    async def end_access(self, user_id: UUID) -> None:
        """Void every access token that the user has."""
        await self._session.execute(
            update(User).where(User.id == user_id).values(token_epoch=User.token_epoch + 1)
        )

    async def replace_password_hash(
        self, user_id: UUID, *, expected: str, new: str, ends_access: bool
    ) -> bool:
        """Store a password's new hash; `False` when another has been stored in between.

        Args:
            user_id: Whose.
            expected: The hash that was verified.
            new: The one to store.
            ends_access: Whether the user's access tokens are void from now on.
        """
        changed = await self._session.execute(
            update(User)
            .where(User.id == user_id, User.password_hash == expected, User.is_active)
            .values(
                password_hash=new,
                token_epoch=User.token_epoch + int(ends_access),
                updated_at=datetime.now(UTC),
            )
            .returning(User.id)
        )
        return changed.one_or_none() is not None
