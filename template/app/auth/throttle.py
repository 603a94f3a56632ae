"""How often logins may fail: for an account and for an address, and less often as they go on."""

import hmac
import math
from hashlib import sha256

import structlog
from prometheus_client import Counter
from pydantic import Field

from app.auth.exceptions import LoginThrottledError
from app.core.rate_limit import RateLimit, RateLimiter
from app.core.settings import Section

# The longer it goes on, the rarer the attempts: five in a minute, then ten in a quarter of an
# hour, then twenty in two hours (with the default setting).
_BACKOFF = ((4, 7200), (2, 900), (1, 60))
# An account's failures from everywhere: guessing from many networks at once ends here. One
# subscriber, who may have 65,536 networks of IPv6, cannot lock the owner out, who comes from
# another; whoever has twenty can, for an hour.
_EVERYWHERE = (20, 3600)
_ADDRESS = ((6, 3600), (1, 60))
_PSEUDONYM_LENGTH = 16

LOGINS = Counter("auth_logins", "Logins that succeeded, failed or were throttled.", ["outcome"])

logger = structlog.get_logger(__name__)


class ThrottleSettings(Section):
    """How many logins may fail."""

    LOGIN_FAILURES_PER_ACCOUNT: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="How many logins for one account may fail from one network within a minute; "
        "twice as many within 15 minutes, four times within two hours.",
    )
    LOGIN_FAILURES_PER_ADDRESS: int = Field(
        default=50,
        ge=1,
        le=100_000,
        description="How many logins may fail from one address within a minute, whatever the "
        "account; six times as many within an hour.",
    )


class LoginThrottle:
    """Counts failed logins in the rate limiter, so that no rollback undoes it.

    The limiter decides whether all processes share the counts.

    Args:
        limiter: Where they are counted.
        settings: How many may fail.
        secret: Makes the pseudonyms of accounts, which nobody else can tell by trying addresses.
    """

    def __init__(self, limiter: RateLimiter, settings: ThrottleSettings, secret: bytes) -> None:
        self._limiter = limiter
        self._settings = settings
        self._secret = secret

    async def admit(self, account: str, address: str, network: str = "") -> "Attempt":
        """Let a login be tried; it counts as failed until it has succeeded.

        So attempts at the same time cannot slip through between a check and a count.

        Args:
            account: Its e-mail address, known or not, written one way.
            address: Where the attempt comes from.
            network: All that its subscriber may have; `address` when omitted.

        Raises:
            LoginThrottledError: too many have failed.
        """
        attempt = Attempt(self._limiter, self._pseudonym(account))
        for key, limit, is_forgiven in self._limits(account, address, network or address):
            wait = await attempt.count(key, limit, is_forgiven)
            if wait is not None:
                # Attempts that are refused do not prolong the wait.
                await attempt.take_back()
                LOGINS.labels("throttled").inc()
                logger.warning(
                    "auth.login_throttled", account=attempt.account, retry_after_seconds=wait
                )
                raise LoginThrottledError(
                    "Too many logins have failed; see Retry-After.",
                    headers={"Retry-After": str(wait)},
                )
        return attempt

    def _pseudonym(self, account: str) -> str:
        text = b"account:" + account.encode("utf-8", "replace")
        return hmac.digest(self._secret, text, "sha256").hex()[:_PSEUDONYM_LENGTH]

    def _limits(
        self, account: str, address: str, network: str
    ) -> list[tuple[str, RateLimit, bool]]:
        per_account = self._settings.LOGIN_FAILURES_PER_ACCOUNT
        per_address = self._settings.LOGIN_FAILURES_PER_ADDRESS
        # Wherever the counts are, nobody needs to know the address there.
        account = sha256(account.encode("utf-8", "replace")).hexdigest()
        limits = [
            *((f"{account} {network}", per_account * factor, s, True) for factor, s in _BACKOFF),
            (account, per_account * _EVERYWHERE[0], _EVERYWHERE[1], False),
            *((address, per_address * factor, s, False) for factor, s in _ADDRESS),
        ]
        return [
            (
                f"login {requests}/{seconds} {key}",
                RateLimit(requests, seconds, holds_in_outage=True),
                is_forgiven,
            )
            for key, requests, seconds, is_forgiven in limits
        ]


class Attempt:
    """One login that is being tried.

    Args:
        limiter: Where it is counted.
        account: The account's name in the log: the same for each attempt, and no address.
    """

    def __init__(self, limiter: RateLimiter, account: str) -> None:
        self._limiter = limiter
        self.account = account
        self._keys: dict[str, bool] = {}

    async def count(self, key: str, limit: RateLimit, is_forgiven: bool) -> int | None:
        """Count it as failed; in how many seconds to come back if it is one too many.

        Args:
            key: What it counts for.
            limit: How many may fail.
            is_forgiven: Whether a success takes back those before it as well.
        """
        decision = await self._limiter.hit(key, limit)
        if not decision.allowed:
            return max(1, math.ceil(decision.reset_after_seconds))
        self._keys[key] = is_forgiven
        return None

    async def succeed(self) -> None:
        """It has not failed, and who mistyped before is forgiven: only for their own account.

        Otherwise whoever has one account could guess at all others without end.
        """
        for key, is_forgiven in self._keys.items():
            await (self._limiter.forget(key) if is_forgiven else self._limiter.release(key))
        self._keys.clear()

    async def take_back(self) -> None:
        """It has not been decided."""
        for key in self._keys:
            await self._limiter.release(key)
        self._keys.clear()
