"""Rate limits that all processes and replicas share, kept in Redis."""

from contextlib import suppress
from enum import StrEnum
from typing import Final, assert_never

import structlog
from pydantic import Field

from app.core.errors import ServiceUnavailableError
from app.core.rate_limit import Decision, MemoryRateLimiter, RateLimit, RateLimiter
from app.core.redis import REDIS_ERRORS, RedisClient
from app.core.settings import Section

_MICROSECONDS = 1_000_000

# A list of the times of a key's requests, oldest first, by the server's clock: the clocks of the
# processes need not agree. It never holds more than the limit, at about 9 bytes an entry.
_HIT: Final = """
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local newest = tonumber(redis.call('LINDEX', KEYS[1], -1) or 0)
if newest > now then
    -- Never back: the clock may be set, and a replica that takes over has its own. It stands still
    -- for this key then, but not for longer than a window.
    now = newest
    if redis.call('PTTL', KEYS[1]) > window / 1000 then
        redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000))
    end
end
local count = redis.call('LLEN', KEYS[1])
local oldest = tonumber(redis.call('LINDEX', KEYS[1], 0) or now)
if oldest + window <= now then
    -- Bisect: dropping one by one would hold up the server when a large window ends.
    local first, last = 1, count
    while first < last do
        local middle = math.floor((first + last) / 2)
        if redis.call('LINDEX', KEYS[1], middle) + window <= now then
            first = middle + 1
        else
            last = middle
        end
    end
    redis.call('LTRIM', KEYS[1], first, -1)
    count = count - first
    oldest = tonumber(redis.call('LINDEX', KEYS[1], 0) or now)
end
local allowed = count < limit
if allowed then
    redis.call('RPUSH', KEYS[1], string.format('%.0f', now))
    redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000))
    count = count + 1
end
return {allowed and 1 or 0, limit - count, oldest + window - now}
"""
_RELEASE: Final = "redis.call('RPOP', KEYS[1])"

logger = structlog.get_logger(__name__)


class OnRedisOutage(StrEnum):
    """What limited routes do while Redis does not answer."""

    LOCAL = "local"
    OPEN = "open"
    CLOSED = "closed"


class RedisRateLimitSettings(Section):
    """What becomes of the limits when the place where they are kept is away."""

    RATE_LIMIT_ON_REDIS_OUTAGE: OnRedisOutage = Field(
        default=OnRedisOutage.LOCAL,
        description="`local`: each process counts for itself, so that a caller may get the limit "
        "once from each; `open`: no limits, except those that hold in an outage; `closed`: limited "
        "routes answer 503.",
    )


class RedisRateLimiter:
    """Counts in Redis: an exact sliding window for all processes together, in one round trip.

    Args:
        settings: What to do while Redis does not answer.
        redis: Where the counts are.
        local: Counts in their place meanwhile; it begins each outage with what it remembers of
            the one before.
    """

    def __init__(
        self,
        settings: RedisRateLimitSettings,
        redis: RedisClient,
        local: RateLimiter | None = None,
    ) -> None:
        self._on_outage = settings.RATE_LIMIT_ON_REDIS_OUTAGE
        self._redis = redis
        self._local = local or MemoryRateLimiter()
        self._hit = redis.raw.register_script(_HIT)
        self._release = redis.raw.register_script(_RELEASE)
        self._without_redis = False

    async def hit(self, key: str, limit: RateLimit) -> Decision:
        """Count one request; atomic because Redis runs one script at a time.

        Raises:
            ServiceUnavailableError: Redis does not answer and the setting says `closed`.
        """
        keys = [self._redis.key("rate-limit", key)]
        args = [limit.requests, int(limit.window_seconds * _MICROSECONDS)]
        try:
            # EVALSHA; after NOSCRIPT, as a server answers that was restarted, it loads the script.
            allowed, remaining, reset = await self._redis.call(lambda _: self._hit(keys, args))
        except REDIS_ERRORS as error:
            return await self._hit_without_redis(key, limit, error)
        # Answers that were still under way when an outage began do not end it.
        if self._without_redis and self._redis.is_available:
            self._without_redis = False
            logger.info("rate_limits_shared_again")
        return Decision(bool(allowed), limit.requests, remaining, reset / _MICROSECONDS)

    async def release(self, key: str) -> None:
        """Take back the latest request; where it was counted, nobody knows after an outage."""
        await self._local.release(key)
        with suppress(*REDIS_ERRORS):
            await self._redis.call(lambda _: self._release([self._redis.key("rate-limit", key)]))

    async def forget(self, key: str) -> None:
        """Take back all requests, wherever they were counted."""
        await self._local.forget(key)
        with suppress(*REDIS_ERRORS):
            await self._redis.call(lambda redis: redis.delete(self._redis.key("rate-limit", key)))

    async def _hit_without_redis(self, key: str, limit: RateLimit, error: Exception) -> Decision:
        if not self._without_redis:
            self._without_redis = True
            cause = error.__cause__ or error
            logger.warning(
                "rate_limits_not_shared", mode=str(self._on_outage), error=type(cause).__name__
            )
        match self._on_outage:
            case OnRedisOutage.OPEN if not limit.holds_in_outage:
                return Decision(True, limit.requests, limit.requests, limit.window_seconds)
            case OnRedisOutage.LOCAL | OnRedisOutage.OPEN:
                return await self._local.hit(key, limit)
            case OnRedisOutage.CLOSED:
                raise ServiceUnavailableError(headers={"Retry-After": "1"})
            case _:
                assert_never(self._on_outage)
