"""What the users routes ask for."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.core.database import Database, ReadSessionDep, SessionDep
from app.core.fair_limiter import subscriber_of
from app.core.passwords import Passwords
from app.users.service import CredentialService, UserService


async def get_users(session: SessionDep) -> UserService:
    """The users, in the request's transaction."""
    return UserService(session)


async def get_users_read_only(session: ReadSessionDep) -> UserService:
    """The users, for routes that only read."""
    return UserService(session)


async def get_credentials(connection: HTTPConnection) -> CredentialService:
    """The users' passwords, in transactions of their own."""
    database: Database = connection.state.database
    passwords: Passwords = connection.state.passwords
    return CredentialService(database, passwords, subscriber_of(connection))


UsersDep = Annotated[UserService, Depends(get_users)]
UsersReadOnlyDep = Annotated[UserService, Depends(get_users_read_only)]
CredentialsDep = Annotated[CredentialService, Depends(get_credentials)]
