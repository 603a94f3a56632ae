"""Whose token it is, remembered in Redis for as long as nothing has ended that."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Final
from uuid import UUID, uuid4

import structlog
from pydantic import BaseModel, Field, ValidationError
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.authenticator import Authentication, DatabaseAuthenticator
from app.auth.events import SessionEnded
from app.core.access_tokens import Claims
from app.core.events import EventBus
from app.core.redis import REDIS_ERRORS, RedisClient
from app.core.security import Identity, Role
from app.core.settings import Section
from app.users.events import AccessChanged

# An entry counts as long as it carries the stamp of its user, which is random and made anew
# whenever it is missing. So removing the stamp removes all entries of a user, those included that
# are being loaded at this moment: they will carry the stamp that was there before the load.
_FIND: Final = """
local function stamp(key)
    local value = redis.call('GET', key)
    if not value then
        value = ARGV[1]
        redis.call('SET', key, value, 'PX', ARGV[2])
    end
    return value
end
local user = stamp(KEYS[2])
if user == 'changing' then
    return {false, false}
end
local both = stamp(KEYS[3]) .. user
local entry = redis.call('GET', KEYS[1])
if entry and string.sub(entry, 1, #both) == both then
    return {both, string.sub(entry, #both + 1)}
end
return {both, false}
"""
_STAMP_MILLISECONDS = 3_600_000
_CHANGING = "changing"
# What a commit may take after the request's time is over, at most.
_COMMIT_SECONDS = 30

logger = structlog.get_logger(__name__)


class AuthCacheSettings(Section):
    """How long a token's user is remembered."""

    AUTH_CACHE_TTL_SECONDS: float = Field(
        default=60,
        gt=0,
        le=3600,
        description="How long a validated token is taken from Redis without asking the database. "
        "What ends access is seen at once; this is the bound for what bypasses the service, such "
        "as SQL by hand.",
    )


class _Entry(BaseModel):
    """What is remembered of a token: no more than a route may need."""

    role: Role
    session_id: UUID
    expires_at: datetime


class CachedAuthenticator:
    """Takes who it is from Redis, in one round trip; while Redis is away the database answers.

    What ends a user's access removes their stamp after the commit, before its request is
    answered. Already before the commit the stamp is replaced by a mark that nothing can be taken
    or stored under: a process that dies in between leaves no entry that counts. What could not be
    removed during an outage goes with the stamp that all entries share, which each process
    removes when the outage is over, before it reads an entry again.

    Args:
        settings: How long entries live.
        request_timeout_seconds: For how long a request may be about to commit.
        database: Answers what is not remembered.
        redis: Where entries are.
        events: Tells what ends access.
    """

    def __init__(
        self,
        settings: AuthCacheSettings,
        request_timeout_seconds: float,
        database: DatabaseAuthenticator,
        redis: RedisClient,
        events: EventBus,
    ) -> None:
        self._ttl_seconds = settings.AUTH_CACHE_TTL_SECONDS
        self._changing_milliseconds = int((request_timeout_seconds + _COMMIT_SECONDS) * 1000)
        self._database = database
        self._redis = redis
        self._find_script = redis.raw.register_script(_FIND)
        # Something ended access, and Redis could not be told.
        self._outdated = False
        events.subscribe_before_commit(AccessChanged, self._before_change)
        events.subscribe_after_commit(AccessChanged, self._after_change)
        events.subscribe_before_commit(SessionEnded, self._before_change)
        events.subscribe_after_commit(SessionEnded, self._after_change)
        redis.on_recovery(self._forget_all)

    async def authenticate(self, token: str) -> Identity:
        """Return whose token it is, now.

        Raises:
            InvalidTokenError: it is not valid, or its session or user is not any more.
        """
        claims = self._database.verify(token)
        key = self._redis.key("auth", "token", sha256(token.encode()).hexdigest())
        try:
            if self._outdated:
                await self._redis.call(self._forget_all)
            stamp, entry = await self._find(key, claims)
        except REDIS_ERRORS:
            return (await self._database.look_up(claims)).identity
        if entry is not None:
            return _identity(claims, entry)
        found = await self._database.look_up(claims)
        if stamp:
            await self._store(key, stamp, found)
        return found.identity

    async def _find(self, key: str, claims: Claims) -> tuple[bytes | None, _Entry | None]:
        keys = [key, self._stamp_key(claims.subject), self._common_stamp_key()]
        args: list[str | int] = [uuid4().hex, _STAMP_MILLISECONDS]
        stamp, entry = await self._redis.call(lambda _: self._find_script(keys, args))
        try:
            return stamp, None if entry is None else _Entry.model_validate_json(entry)
        except ValidationError:
            # Of another release; it is replaced.
            return stamp, None

    async def _store(self, key: str, stamp: bytes, found: Authentication) -> None:
        identity = found.identity
        seconds = (found.expires_at - datetime.now(UTC)).total_seconds()
        milliseconds = int(min(seconds, self._ttl_seconds) * 1000)
        if milliseconds <= 0:
            return
        entry = _Entry(
            role=identity.role,
            session_id=UUID(identity.session_id),
            expires_at=identity.expires_at,
        )
        value = stamp + entry.model_dump_json().encode()

        async def store(client: Redis) -> None:
            await client.set(key, value, px=milliseconds)

        try:
            await self._redis.call(store)
        except REDIS_ERRORS as error:
            logger.debug("auth_cache_not_written", error=type(error).__name__)

    async def _before_change(self, event: AccessChanged | SessionEnded, _: AsyncSession) -> None:
        key = self._stamp_key(str(event.user_id))

        async def mark(client: Redis) -> None:
            await client.set(key, _CHANGING, px=self._changing_milliseconds)

        try:
            await self._redis.call(mark)
        except REDIS_ERRORS:
            self._outdated = True

    async def _after_change(self, event: AccessChanged | SessionEnded) -> None:
        key = self._stamp_key(str(event.user_id))

        async def remove(client: Redis) -> None:
            await client.unlink(key)

        try:
            await self._redis.call(remove)
        except REDIS_ERRORS:
            self._outdated = True

    async def _forget_all(self, client: Redis) -> None:
        self._outdated = False
        try:
            await client.unlink(self._common_stamp_key())
        except BaseException:
            self._outdated = True
            raise

    def _stamp_key(self, user_id: str) -> str:
        return self._redis.key("auth", "stamp", user_id)

    def _common_stamp_key(self) -> str:
        return self._redis.key("auth", "stamp")


def _identity(claims: Claims, entry: _Entry) -> Identity:
    return Identity(
        id=claims.subject,
        role=entry.role,
        session_id=str(entry.session_id),
        expires_at=entry.expires_at,
    )
