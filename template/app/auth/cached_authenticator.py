"""Whose token it is, remembered in Redis for as long as nothing has ended that."""

import hmac
from datetime import UTC, datetime, timedelta
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

# An entry counts as long as it carries the generation of all that is cached and the stamp of its
# user; both are random and made anew whenever they are missing. So removing the stamp removes all
# entries of a user, those included that are being loaded at this moment: they will carry the stamp
# that was there before the load.
_FIND: Final = """
local function stamp(key, ...)
    local value = redis.call('GET', key)
    if not value then
        value = ARGV[1]
        redis.call('SET', key, value, ...)
    end
    return value
end
if redis.call('EXISTS', KEYS[4]) == 1 then
    return {false, false}
end
local both = stamp(KEYS[3]) .. stamp(KEYS[2], 'PX', ARGV[2])
local entry = redis.call('GET', KEYS[1])
if entry and string.sub(entry, 1, #both) == both then
    return {both, string.sub(entry, #both + 1)}
end
return {both, false}
"""
_STAMP_MILLISECONDS = 3_600_000
_SIGNATURE_BYTES = 32
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
    """What is remembered of a token: no more than a route may need, and until when."""

    role: Role
    session_id: UUID
    expires_at: datetime
    until: datetime


class CachedAuthenticator:
    """Takes who it is from Redis, in one round trip; while Redis is away the database answers.

    What ends a user's access removes their stamp after the commit, before its request is
    answered. Already before the commit it is noted that the user is changing: nothing is taken or
    stored meanwhile, so a process that dies in between leaves no entry that counts. What could not
    be removed during an outage goes with the generation that all entries share: see `RedisClient`.

    Entries are signed, as whoever can write to Redis must not be able to give themselves a role;
    and what is signed says until when: whoever puts an old one back, with the stamp of its user,
    has what ended meanwhile for `AUTH_CACHE_TTL_SECONDS` at most.

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
        self._secret = database.access_tokens.keys.shared_secret
        self._process = uuid4().hex
        events.subscribe_before_commit(AccessChanged, self._before_change)
        events.subscribe_after_commit(AccessChanged, self._after_change)
        events.subscribe_before_commit(SessionEnded, self._before_change)
        events.subscribe_after_commit(SessionEnded, self._after_change)

    async def authenticate(self, token: str) -> Identity:
        """Return whose token it is, now.

        Raises:
            InvalidTokenError: it is not valid, or its session or user is not any more.
        """
        claims = self._database.verify(token)
        key = self._redis.key("auth", "token", sha256(token.encode()).hexdigest())
        try:
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
        stamp_key, changing_key = (
            self._stamp_key(claims.subject),
            self._changing_key(claims.subject),
        )
        keys = [key, stamp_key, self._redis.generation_key, changing_key]
        args: list[str | int] = [uuid4().hex, _STAMP_MILLISECONDS]
        stamp, entry = await self._redis.call(lambda _: self._find_script(keys, args))
        if entry is None:
            return stamp, None
        body, signature = entry[:-_SIGNATURE_BYTES], entry[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(key, stamp, body)):
            # Of a release or of a key that was replaced, or by somebody else.
            return stamp, None
        try:
            found = _Entry.model_validate_json(body)
        except ValidationError:
            return stamp, None
        return stamp, found if found.until > datetime.now(UTC) else None

    async def _store(self, key: str, stamp: bytes, found: Authentication) -> None:
        identity = found.identity
        now = datetime.now(UTC)
        until = min(found.expires_at, now + timedelta(seconds=self._ttl_seconds))
        milliseconds = int((until - now).total_seconds() * 1000)
        if milliseconds <= 0:
            return
        entry = _Entry(
            role=identity.role,
            session_id=UUID(identity.session_id),
            expires_at=identity.expires_at,
            until=until,
        )
        body = entry.model_dump_json().encode()
        value = stamp + body + self._sign(key, stamp, body)

        async def store(client: Redis) -> None:
            await client.set(key, value, px=milliseconds)

        try:
            await self._redis.call(store)
        except REDIS_ERRORS as error:
            logger.debug("auth_cache_not_written", error=type(error).__name__)

    def _sign(self, key: str, stamp: bytes, body: bytes) -> bytes:
        text = b"auth-cache:%b:%b:%b" % (key.encode(), stamp, body)
        return hmac.digest(self._secret, text, "sha256")

    async def _before_change(self, event: AccessChanged | SessionEnded, _: AsyncSession) -> None:
        user_id = str(event.user_id)

        async def note(client: Redis) -> None:
            async with client.pipeline() as pipeline:
                pipeline.sadd(self._changing_key(user_id), self._name(event))
                pipeline.pexpire(self._changing_key(user_id), self._changing_milliseconds)
                pipeline.unlink(self._stamp_key(user_id))
                await pipeline.execute()

        await self._redis.invalidate(note)

    async def _after_change(self, event: AccessChanged | SessionEnded) -> None:
        user_id = str(event.user_id)

        async def end(client: Redis) -> None:
            async with client.pipeline() as pipeline:
                pipeline.unlink(self._stamp_key(user_id))
                pipeline.srem(self._changing_key(user_id), self._name(event))
                await pipeline.execute()

        await self._redis.invalidate(end)

    def _name(self, event: AccessChanged | SessionEnded) -> str:
        # Of this change alone: the end of one must not end another that is under way.
        return f"{self._process}:{id(event)}"

    def _stamp_key(self, user_id: str) -> str:
        return self._redis.key("auth", "stamp", user_id)

    def _changing_key(self, user_id: str) -> str:
        return self._redis.key("auth", "changing", user_id)


def _identity(claims: Claims, entry: _Entry) -> Identity:
    return Identity(
        id=claims.subject,
        role=entry.role,
        session_id=str(entry.session_id),
        expires_at=entry.expires_at,
    )
