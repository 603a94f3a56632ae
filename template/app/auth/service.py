"""The rules of sessions: logging in, refreshing once, and ending them."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog
from anyio import CancelScope
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.typing import FilteringBoundLogger
from uuid_utils.compat import uuid7

from app.auth import tokens
from app.auth.events import SessionEnded
from app.auth.exceptions import (
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    SessionNotFoundError,
)
from app.auth.models import RefreshToken
from app.auth.repository import SessionRepository
from app.auth.schemas import LoginForm, TokenPair
from app.auth.throttle import LOGINS, LoginThrottle
from app.core.access_tokens import AccessTokens
from app.core.database import Database, clock
from app.core.events import record
from app.core.pagination import PageParams, Slice
from app.core.passwords import Passwords, Verified
from app.core.security import Identity
from app.core.settings import Section
from app.users.events import AccessChanged
from app.users.models import User
from app.users.repository import UserRepository
from app.users.schemas import AccountEmail

# A password that fits is verified again when its hash has been replaced meanwhile.
_TRIES = 2
_EMAIL: TypeAdapter[str] = TypeAdapter(AccountEmail)

logger = structlog.get_logger(__name__)


class SessionSettings(Section):
    """How long sessions live."""

    REFRESH_TOKEN_EXPIRE_DAYS: float = Field(
        default=30, gt=0, le=3650, description="For how long a session may go without a refresh."
    )
    SESSION_EXPIRE_DAYS: float = Field(
        default=90, gt=0, le=3650, description="When a session ends however often it is refreshed."
    )
    REFRESH_GRACE_SECONDS: float = Field(
        default=10,
        ge=0,
        le=60,
        description="For how long after its use a refresh token may be exchanged again, for its "
        "unused child: for clients that refresh twice at the same time.",
    )


@dataclass(frozen=True, slots=True)
class Client:
    """Who sends a request, as far as one can tell without a token.

    Args:
        address: An IPv4 address, or the IPv6 network that one place has at least.
        user_agent: What they say of their software.
        network: The network that one subscriber has at most.
    """

    address: str
    user_agent: str | None
    network: str = ""


class LoginService:
    """Logging in, which takes a password's hash, and so no connection meanwhile.

    It opens its own transactions: hashing takes longer than all statements of a request together.
    """

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        throttle: LoginThrottle,
        sessions: "SessionService",
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._throttle = throttle
        self._sessions = sessions

    async def login(self, form: LoginForm, client: Client) -> TokenPair:
        """Begin a session.

        Raises:
            InvalidCredentialsError: whatever the reason; it takes as long for unknown accounts.
            LoginThrottledError: too many logins have failed.
            OverloadedError: too many passwords are being verified.
        """
        email = _normalize(form.username)
        attempt = await self._throttle.admit(email or form.username, client.address, client.network)
        log = logger.bind(account=attempt.account)
        try:
            pair = await self._try(email, form.password.get_secret_value(), client, log)
        except InvalidCredentialsError:
            LOGINS.labels("failed").inc()
            raise
        except BaseException:
            # A database that is away or a deadline: no failure of theirs, and no answer to a guess.
            with CancelScope(shield=True):
                await attempt.take_back()
            raise
        LOGINS.labels("succeeded").inc()
        await attempt.succeed()
        return pair

    async def _try(
        self, email: str | None, password: str, client: Client, log: FilteringBoundLogger
    ) -> TokenPair:
        for _ in range(_TRIES):
            user = None if email is None else await self._find(email)
            password_hash = None if user is None else user.password_hash
            verified = await self._passwords.verify(password, password_hash, client.network)
            if user is None:
                log.warning("auth.login_failed", reason="unknown_account")
                raise _refused()
            if not verified.valid:
                log.warning("auth.login_failed", reason="wrong_password", user_id=str(user.id))
                raise _refused()
            async with self._database.transaction() as session:
                pair = await self._begin(session, user, verified, client, log)
            if pair is not None:
                return pair
        log.warning("auth.login_failed", reason="password_changing")
        raise _refused()

    async def _find(self, email: str) -> User | None:
        async with self._database.read_only() as session:
            return await UserRepository(session).get_by_email(email)

    async def _begin(
        self,
        session: AsyncSession,
        known: User,
        verified: Verified,
        client: Client,
        log: FilteringBoundLogger,
    ) -> TokenPair | None:
        user = await UserRepository(session).get_locked(known.id)
        if user is None or not user.is_active:
            log.warning("auth.login_failed", reason="inactive", user_id=str(known.id))
            raise _refused()
        # While it was verified another login may have stored a new hash of the same password, or
        # its owner another password, which ends sessions.
        if user.password_hash != known.password_hash:
            return None
        if verified.new_hash is not None:
            user.password_hash = verified.new_hash
        pair, session_id = self._sessions.begin(session, user, client)
        logger.info("auth.login_succeeded", user_id=str(user.id), session_id=str(session_id))
        return pair


class SessionService:
    """What becomes of sessions after the login.

    It opens its own transactions: what a refused refresh has revoked must stay revoked, so it is
    committed before the error is raised.
    """

    def __init__(
        self, database: Database, access_tokens: AccessTokens, settings: SessionSettings
    ) -> None:
        self._database = database
        self._access_tokens = access_tokens
        self._idle = timedelta(days=settings.REFRESH_TOKEN_EXPIRE_DAYS)
        self._absolute = timedelta(days=settings.SESSION_EXPIRE_DAYS)
        self._grace = timedelta(seconds=settings.REFRESH_GRACE_SECONDS)

    def begin(self, session: AsyncSession, user: User, client: Client) -> tuple[TokenPair, UUID]:
        """Add a session for a user, whose row must be locked; return its first tokens and id."""
        # Holds the time of the login, which is not after its first use.
        family_id = uuid7()
        token = tokens.new_token()
        first = RefreshToken(
            family_id=family_id,
            user_id=user.id,
            token_hash=tokens.hash_token(token),
            user_agent=client.user_agent,
            issued_at=clock(),
            expires_at=clock(min(self._idle, self._absolute)),
            family_expires_at=clock(self._absolute),
        )
        SessionRepository(session).add(first)
        return self._pair(user, first, token), first.family_id

    async def refresh(self, token: str, client: Client) -> TokenPair:
        """Exchange a refresh token, which is good once.

        Within the grace the parent of the newest, still unused token is exchanged again, for that
        same token. Any other that was used before is in two hands: its session ends.

        Raises:
            InvalidRefreshTokenError: it is not good, or not any more.
        """
        async with self._database.transaction() as session:
            pair = await self._rotate(session, token, client)
        # Here the transaction is committed: what a reuse has revoked is not rolled back.
        if pair is None:
            raise InvalidRefreshTokenError("The refresh token is not valid; log in again.")
        return pair

    async def _rotate(self, session: AsyncSession, token: str, client: Client) -> TokenPair | None:
        sessions = SessionRepository(session)
        token_hash = tokens.hash_token(token)
        user = await sessions.get_locked_owner(token_hash)
        if user is None or not user.is_active:
            reason = "unknown_token" if user is None else "inactive"
            logger.warning("auth.refresh_failed", reason=reason)
            return None
        # After the lock: who has waited for it comes after the use that it waited for.
        used = await sessions.use(token_hash)
        if used is None or used.used_at is None:
            return await self._refresh_again(session, user, token)
        now = used.used_at
        salt = tokens.new_salt()
        child_token = tokens.derive_child(token, salt)
        child = RefreshToken(
            family_id=used.family_id,
            user_id=user.id,
            token_hash=tokens.hash_token(child_token),
            parent_id=used.id,
            salt=salt,
            user_agent=client.user_agent,
            issued_at=now,
            expires_at=min(now + self._idle, used.family_expires_at),
            family_expires_at=used.family_expires_at,
        )
        sessions.add(child)
        logger.info("auth.refreshed", user_id=str(user.id), session_id=str(used.family_id))
        return self._pair(user, child, child_token)

    async def _refresh_again(
        self, session: AsyncSession, user: User, token: str
    ) -> TokenPair | None:
        sessions = SessionRepository(session)
        known = await sessions.get(tokens.hash_token(token))
        log = logger.bind(user_id=str(user.id), session_id=str(known.family_id))
        now = await sessions.get_time()
        newest = await sessions.get_newest(known.family_id)
        if newest is None or known.used_at is None:
            reason = "expired" if known.expires_at <= now else "revoked"
            log.warning("auth.refresh_failed", reason=reason)
            return None
        in_time = now < known.used_at + self._grace
        if in_time and newest.parent_id == known.id and newest.salt:
            log.info("auth.refreshed_again")
            return self._pair(user, newest, tokens.derive_child(token, newest.salt))
        log.warning("auth.refresh_token_reused")
        await _end(session, user.id, known.family_id, "token_reused")
        return None

    async def logout(self, token: str) -> None:
        """End the session of a refresh token, used or not; it may be unknown (RFC 7009)."""
        async with self._database.transaction() as session:
            token_hash = tokens.hash_token(token)
            sessions = SessionRepository(session)
            user = await sessions.get_locked_owner(token_hash)
            if user is not None:
                known = await sessions.get(token_hash)
                await _end(session, user.id, known.family_id, "logged_out")

    async def logout_everywhere(self, identity: Identity) -> None:
        """End every session of the user, and void their access tokens."""
        user_id = UUID(identity.id)
        async with self._database.transaction() as session:
            await UserRepository(session).end_access(user_id)
            record(session, AccessChanged(user_id=user_id, reason="logged_out"))
            logger.info("auth.all_sessions_ended", user_id=identity.id)

    async def list_newest(self, identity: Identity, page: PageParams) -> Slice[RefreshToken]:
        """Return the user's sessions, each as its newest token, the last used first."""
        async with self._database.read_only() as session:
            return await SessionRepository(session).list_newest(UUID(identity.id), page)

    async def end(self, identity: Identity, session_id: UUID) -> None:
        """End one of the user's sessions.

        Raises:
            SessionNotFoundError: they have none with this id, or not any more.
        """
        user_id = UUID(identity.id)
        async with self._database.transaction() as session:
            await UserRepository(session).get_locked(user_id)
            if not await _end(session, user_id, session_id, "ended_by_user"):
                raise SessionNotFoundError(f"You have no session {session_id}.")

    def _pair(self, user: User, newest: RefreshToken, token: str) -> TokenPair:
        access_token = self._access_tokens.issue(
            subject=str(user.id),
            session_id=str(newest.family_id),
            role=user.role.value,
            epoch=user.token_epoch,
        )
        return TokenPair(
            access_token=access_token,
            refresh_token=token,
            expires_in=self._access_tokens.lifetime_seconds,
        )


async def _end(session: AsyncSession, user_id: UUID, session_id: UUID, reason: str) -> bool:
    if not await SessionRepository(session).end(user_id, session_id):
        return False
    record(session, SessionEnded(user_id=user_id, session_id=session_id))
    logger.info(
        "auth.session_ended", user_id=str(user_id), session_id=str(session_id), reason=reason
    )
    return True


def _normalize(username: str) -> str | None:
    try:
        return _EMAIL.validate_python(username)
    except ValidationError:
        # No account has it, and a database may not even take it.
        return None


def _refused() -> InvalidCredentialsError:
    return InvalidCredentialsError("The e-mail address or the password is wrong.")
