"""The rules of users: registering, changing oneself, and what admins may do with others."""

from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import structlog
from pydantic import Field, SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.events import record
from app.core.pagination import PageParams, Slice
from app.core.passwords import Passwords, weakness
from app.core.principal import Principal
from app.core.security import Role, RoleRequiredError
from app.core.settings import Section
from app.users.events import AccessChanged, UserRegistered
from app.users.exceptions import (
    OwnAccessError,
    PasswordRefusedError,
    UserNotFoundError,
)
from app.users.models import User
from app.users.repository import UserRepository
from app.users.schemas import AccessUpdate, PasswordChange, UserRegister, UserUpdate

logger = structlog.get_logger(__name__)


class UserSettings(Section):
    """How registering answers."""

    REGISTRATION_REVEALS_ACCOUNTS: bool = Field(
        default=True,
        description="Whether registering says that an address is taken. Otherwise it answers 202 "
        "in any case.",
    )


class UserService:
    """What can be done with users.

    It changes and records; the transaction belongs to the caller, who commits it.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._users = UserRepository(session)

    async def add(self, email: str, full_name: str | None, password_hash: str, role: Role) -> User:
        """Store a new user.

        Raises:
            EmailTakenError: somebody has this address.
        """
        now = datetime.now(UTC)
        user = User(
            email=email,
            full_name=full_name,
            password_hash=password_hash,
            role=role,
            is_active=True,
            token_epoch=0,
            created_at=now,
            updated_at=now,
        )
        await self._users.add(user)
        record(self._session, UserRegistered(user_id=user.id))
        return user

    async def get(self, user_id: UUID) -> User:
        """Return a user.

        Raises:
            UserNotFoundError: there is none with this id.
        """
        user = await self._users.get(user_id)
        if user is None:
            raise _not_found(user_id)
        return user

    async def list_newest(self, page: PageParams) -> Slice[User]:
        """Return a page of all users, newest first."""
        return await self._users.list_newest(page)

    async def update(self, user_id: UUID, update: UserUpdate) -> User:
        """Change what users may change about themselves.

        Raises:
            UserNotFoundError: there is none with this id.
        """
        user = await self._users.get_locked(user_id)
        if user is None:
            raise _not_found(user_id)
        if "full_name" in update.model_fields_set and update.full_name != user.full_name:
            user.full_name = update.full_name
            user.updated_at = datetime.now(UTC)
        return user

    async def update_access(self, admin: Principal, user_id: UUID, update: AccessUpdate) -> User:
        """Change a user's role, deactivate or activate them; every such change voids their tokens.

        Raises:
            UserNotFoundError: there is none with this id.
            OwnAccessError: it is the admin: so that at least one is always left.
            RoleRequiredError: they are not an admin any more.
        """
        admin_id = UUID(admin.id)
        if admin_id == user_id:
            raise OwnAccessError("Ask another admin to change your access.")
        locked = await self._users.get_all_locked((admin_id, user_id))
        # Since the guard has looked, another admin may have changed theirs; two who change each
        # other's at the same time must not both succeed.
        acting = locked.get(admin_id)
        if acting is None or not acting.is_active or acting.role is not Role.ADMIN:
            raise RoleRequiredError("You are not an admin any more.")
        user = locked.get(user_id)
        if user is None:
            raise _not_found(user_id)
        if update.role is not None and update.role is not user.role:
            user.role = update.role
            self._end_access(user, "role_changed")
        if update.is_active is not None and update.is_active is not user.is_active:
            user.is_active = update.is_active
            self._end_access(user, "activated" if update.is_active else "deactivated")
        return user

    def _end_access(
        self, user: User, reason: Literal["activated", "deactivated", "role_changed"]
    ) -> None:
        user.token_epoch += 1
        user.updated_at = datetime.now(UTC)
        record(self._session, AccessChanged(user_id=user.id, reason=reason))
        logger.info(
            "users.access_changed", user_id=str(user.id), reason=reason, role=user.role.value
        )


class CredentialService:
    """What takes a password's hash, and so neither a connection nor a lock meanwhile.

    It opens its own transactions: hashing takes longer than all statements of a request together.

    Args:
        database: Where users are.
        passwords: Hashes and verifies.
        network: Where the request comes from; those that wait for a hash take turns by it.
    """

    def __init__(self, database: Database, passwords: Passwords, network: str = "") -> None:
        self._database = database
        self._passwords = passwords
        self._network = network

    async def register(self, request: UserRegister, role: Role = Role.USER) -> User:
        """Make an account.

        Raises:
            PasswordRefusedError: the password is easy to guess.
            EmailTakenError: there is an account with this address; found out as slowly as an
                account is made.
            OverloadedError: too many passwords are being hashed.
        """
        _check(request.password, "password", request.email, request.full_name)
        password_hash = await self._passwords.hash(
            request.password.get_secret_value(), self._network
        )
        async with self._database.transaction() as session:
            user = await UserService(session).add(
                request.email, request.full_name, password_hash, role
            )
        logger.info("users.registered", user_id=str(user.id), role=role.value)
        return user

    async def change_password(self, user_id: UUID, change: PasswordChange) -> None:
        """Replace the password, which ends every session of the user.

        Raises:
            UserNotFoundError: there is none with this id, or not any more.
            PasswordRefusedError: the current password is wrong, or has just been changed, or the
                new one is easy to guess.
            OverloadedError: too many passwords are being hashed.
        """
        async with self._database.read_only() as session:
            user = await UserService(session).get(user_id)
        _check(change.new_password, "new_password", user.email, user.full_name)
        if change.new_password == change.current_password:
            raise _refused("new_password", "is the current password")
        verified = await self._passwords.verify(
            change.current_password.get_secret_value(), user.password_hash, self._network
        )
        if not verified.valid:
            logger.warning("users.password_change_refused", user_id=str(user_id))
            raise _refused("current_password", "is not the current password")
        new_hash = await self._passwords.hash(change.new_password.get_secret_value(), self._network)
        async with self._database.transaction() as session:
            replaced = await UserRepository(session).replace_password_hash(
                user_id, expected=user.password_hash, new=new_hash, ends_access=True
            )
            if not replaced:
                raise _refused("current_password", "has just been changed")
            record(session, AccessChanged(user_id=user_id, reason="password_changed"))
        logger.info("users.access_changed", user_id=str(user_id), reason="password_changed")


def _check(password: SecretStr, field: str, email: str, full_name: str | None) -> None:
    problem = weakness(password.get_secret_value(), (email, full_name or ""))
    if problem is not None:
        raise _refused(field, problem)


def _not_found(user_id: UUID) -> UserNotFoundError:
    return UserNotFoundError(f"There is no user {user_id}.")


def _refused(field: str, problem: str) -> PasswordRefusedError:
    return PasswordRefusedError(
        f"{field} {problem}.",
        errors=[{"loc": ("body", field), "msg": problem, "type": "password_refused"}],
    )
