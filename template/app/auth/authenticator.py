"""Whose token it is, as the database knows it at this moment."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import structlog

from app.auth.repository import SessionRepository
from app.core.access_tokens import AccessTokens, Claims, InvalidTokenError
from app.core.database import Database
from app.core.security import Identity

logger = structlog.get_logger(__name__)


class Authentication(NamedTuple):
    """Who it is, and until when that holds unless something ends it before."""

    identity: Identity
    expires_at: datetime


class DatabaseAuthenticator:
    """Asks the database on each request: what ends access does so at once.

    One SELECT finds the user and the session; both have to be there, and the token must have been
    issued in the user's present epoch.

    Args:
        access_tokens: Verifies tokens.
        database: Knows users and sessions.
    """

    def __init__(self, access_tokens: AccessTokens, database: Database) -> None:
        self.access_tokens = access_tokens
        self._database = database

    async def authenticate(self, token: str) -> Identity:
        """Return whose token it is, now.

        Raises:
            InvalidTokenError: it is not valid, or its session or user is not any more.
        """
        return (await self.look_up(self.verify(token))).identity

    def verify(self, token: str) -> Claims:
        """Return what the token says, without asking whether it still holds.

        Raises:
            InvalidTokenError: it is not one of ours, or has expired.
        """
        try:
            return self.access_tokens.verify(token)
        except InvalidTokenError as error:
            logger.info("auth.access_refused", reason=error.reason)
            raise

    async def look_up(self, claims: Claims) -> Authentication:
        """Ask the database whether what a token says still holds.

        Raises:
            InvalidTokenError: its session or user is not there any more, or its epoch is over.
        """
        try:
            user_id, session_id = UUID(claims.subject), UUID(claims.session_id)
        except ValueError:
            raise InvalidTokenError("claims of another form") from None
        async with self._database.read_only() as session:
            access = await SessionRepository(session).find_access(user_id, session_id)
        if access is None or access.epoch != claims.epoch:
            logger.info(
                "auth.access_refused",
                reason="session is over" if access is None else "epoch is over",
                user_id=claims.subject,
                session_id=claims.session_id,
            )
            raise InvalidTokenError("not any more")
        identity = Identity(
            id=claims.subject,
            role=access.role,
            session_id=claims.session_id,
            expires_at=claims.expires_at,
        )
        return Authentication(identity, min(claims.expires_at, access.expires_at))
