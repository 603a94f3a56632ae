"""Rate limits: a sliding window for each caller of each route."""

import math
import time
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address, IPv6Network
from typing import NamedTuple, Protocol, TypeAlias

from prometheus_client import Counter
from pydantic import Field
from starlette.requests import HTTPConnection

from app.core.errors import TooManyRequestsError
from app.core.principal import principal_of
from app.core.routing import route_template
from app.core.settings import Section

_NANOSECONDS = 1_000_000_000
_REJECTED = Counter("rate_limit_rejections", "Requests that a rate limit has refused.")
_Expiries: TypeAlias = "OrderedDict[str, array[int]]"


class RateLimitSettings(Section):
    """The limit of every route of the API that does not set a stricter one."""

    RATE_LIMIT_REQUESTS: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="How many requests a caller may make to one route within the window. There is "
        "no value that means no limit; set a high one.",
    )
    RATE_LIMIT_WINDOW_SECONDS: int = Field(
        default=60, ge=1, le=86_400, description="The length of the sliding window."
    )


class RateLimit(NamedTuple):
    """At most `requests` within any `window_seconds`.

    One that `holds_in_outage` is not lifted while the place of the shared counts is away.
    """

    requests: int
    window_seconds: float
    holds_in_outage: bool = False


class Decision(NamedTuple):
    """What the limiter says to one request.

    `reset_after_seconds` is when `remaining` next grows: a refused caller who waits that long
    is let through.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_after_seconds: float


class RateLimiter(Protocol):
    """Counts requests; implementations differ in where they keep the counts."""

    async def hit(self, key: str, limit: RateLimit) -> Decision:
        """Count one request under `key` unless the limit is reached, in one atomic step.

        Refused requests are not counted: hammering does not prolong the wait.
        """

    async def release(self, key: str) -> None:
        """Take back the latest request that was counted under `key`, if there is one."""

    async def forget(self, key: str) -> None:
        """Take back all requests that were counted under `key`."""


class MemoryRateLimiter:
    """Keeps the counts in this process: with several processes, each allows the limit for itself.

    An exact log of each key's requests rather than a counter for each window: no burst of twice
    the limit at a window's edge, and a steady rate below the limit is never refused. A request
    takes 8 bytes for one window.

    Args:
        max_keys: How many callers to remember, so that a flood of addresses cannot exhaust the
            memory. Beyond it the one unseen for longest is forgotten, but whoever is refused or
            has used up half of a limit only after the others: a flood must not set them free.
        clock: Nanoseconds that never go back.
    """

    def __init__(
        self, max_keys: int = 50_000, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._max_keys = max_keys
        self._clock = clock
        # The least recently seen first. Each value holds when its requests stop counting.
        self._few: _Expiries = OrderedDict()
        self._many: _Expiries = OrderedDict()

    async def hit(self, key: str, limit: RateLimit) -> Decision:
        """Count one request; atomic because nothing in here awaits."""
        now = self._clock()
        expiries = self._pop(key)
        if expiries is None:
            self._make_room(now)
            expiries = array("q")
        elif expiries[0] <= now:
            del expiries[: bisect_right(expiries, now)]
        allowed = len(expiries) < limit.requests
        if allowed:
            expiries.append(now + int(limit.window_seconds * _NANOSECONDS))
        # A single request is what a flood of addresses consists of, whatever the limit.
        many = not allowed or (len(expiries) > 1 and 2 * len(expiries) >= limit.requests)
        (self._many if many else self._few)[key] = expiries
        return Decision(
            allowed,
            limit.requests,
            limit.requests - len(expiries),
            (expiries[0] - now) / _NANOSECONDS,
        )

    async def release(self, key: str) -> None:
        """Take back the latest request; a key without any must not stay."""
        for place in (self._few, self._many):
            if expiries := place.get(key):
                expiries.pop()
                if not expiries:
                    del place[key]

    async def forget(self, key: str) -> None:
        """Take back all requests."""
        self._pop(key)

    def __len__(self) -> int:
        """How many callers are remembered."""
        return len(self._few) + len(self._many)

    def _pop(self, key: str) -> "array[int] | None":
        expiries = self._few.pop(key, None)
        return self._many.pop(key, None) if expiries is None else expiries

    def _make_room(self, now: int) -> None:
        # Two for each one that is added: the finished ones go without a task or a pause.
        for place in (self._few, self._many) * 2:
            oldest = next(iter(place), None)
            if oldest is not None and place[oldest][-1] <= now:
                del place[oldest]
        if len(self) >= self._max_keys:
            # A tenth is for the others: who is new would otherwise never be counted twice.
            place = self._few if 10 * len(self._few) > self._max_keys else self._many
            place.popitem(last=False)


def rate_limit(
    requests: int | None = None,
    window_seconds: float | None = None,
    *,
    scope: str | None = None,
    holds_in_outage: bool = False,
) -> "RateLimitDependency":
    """A dependency that limits a route: `dependencies=[Depends(rate_limit(5, 60))]`.

    Several limits on one route all count, and each can refuse; the headers tell of the one with
    the fewest requests left. A limit that comes before any guard is checked before a body is read.
    One that needs to know the principal is checked when FastAPI has read and parsed the body, and
    before that is validated; a body that is not JSON at all is then refused without being counted.

    Args:
        requests: How many within the window; `RATE_LIMIT_REQUESTS` when omitted.
        window_seconds: The window's length; `RATE_LIMIT_WINDOW_SECONDS` when omitted.
        scope: Routes with the same scope share one budget; each has its own when omitted.
        holds_in_outage: Whether it is not lifted while the place of shared counts is away.
    """
    return RateLimitDependency(requests, window_seconds, scope, holds_in_outage)


class RateLimitDependency:
    """What `rate_limit` returns: called by FastAPI for each request."""

    def __init__(
        self,
        requests: int | None,
        window_seconds: float | None,
        scope: str | None,
        holds_in_outage: bool,
    ) -> None:
        if (requests is not None and requests < 1) or (
            window_seconds is not None and window_seconds <= 0
        ):
            raise ValueError("a rate limit is at least one request within more than zero seconds")
        self._requests = requests
        self._window_seconds = window_seconds
        self._scope = scope
        self._holds_in_outage = holds_in_outage

    async def __call__(self, connection: HTTPConnection) -> None:
        """Count this request and announce what is left.

        Raises:
            TooManyRequestsError: when the caller has used the limit up.
        """
        state = connection.scope["state"]
        early: set[RateLimitDependency] = state.get("counted_early", set())
        if self in early:
            early.remove(self)
            return
        settings: RateLimitSettings = state["settings"]
        limiter: RateLimiter = state["rate_limiter"]
        limit = RateLimit(
            self._requests or settings.RATE_LIMIT_REQUESTS,
            self._window_seconds or settings.RATE_LIMIT_WINDOW_SECONDS,
            self._holds_in_outage,
        )
        place = self._scope or _route(connection)
        # The limit is part of the key, so that two limits on one route count apart.
        key = f"{limit.requests}/{limit.window_seconds:g} {place} {caller(connection)}"
        decision = await limiter.hit(key, limit)
        _announce(connection, decision)
        if not decision.allowed:
            _REJECTED.inc()
            raise TooManyRequestsError(
                "Too many requests; see Retry-After.",
                headers={"Retry-After": str(_whole_seconds(decision))},
            )

    async def count_early(self, connection: HTTPConnection) -> None:
        """Count this request before FastAPI calls the dependency, whose call then does nothing.

        Raises:
            TooManyRequestsError: when the caller has used the limit up.
        """
        state = connection.scope["state"]
        early: set[RateLimitDependency] = state.setdefault("counted_early", set())
        if self not in early:
            await self(connection)
            early.add(self)


def caller(connection: HTTPConnection) -> str:
    """Who is counted: the principal, or the client's address where nobody is known.

    The address is the connection's, or the one that a trusted proxy has reported.
    """
    principal = principal_of(connection)
    if not principal.is_anonymous:
        return f"principal:{principal.id}"
    return f"address:{network_of(connection)}"


def network_of(connection: HTTPConnection, ipv6_prefix: int = 64) -> str:
    """Where a request comes from: an IPv4 address or an IPv6 network, whoever is asking.

    Args:
        connection: The request.
        ipv6_prefix: How many bits name the network; one subscriber holds a /64 at least (RFC 6177).
    """
    # A Unix socket reports no client: all share one budget, unless its proxy is trusted.
    client = connection.scope.get("client")
    return _network(client[0], ipv6_prefix) if client else "unknown"


@lru_cache(maxsize=4096)
def _network(host: str, ipv6_prefix: int) -> str:
    if ":" not in host:
        return host
    try:
        address = IPv6Address(host.partition("%")[0])
    except AddressValueError:
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), ipv6_prefix), strict=False))


def _route(connection: HTTPConnection) -> str:
    scope = connection.scope
    return f"{scope.get('method', 'WEBSOCKET')} {route_template(scope) or scope['path']}"


def _announce(connection: HTTPConnection, decision: Decision) -> None:
    # Put on whatever is answered, errors included, by RequestMiddleware.
    headers: dict[str, str] = connection.scope["state"].setdefault("response_headers", {})
    announced = headers.get("RateLimit-Remaining")
    if announced is not None and int(announced) < decision.remaining:
        return
    headers["RateLimit-Limit"] = str(decision.limit)
    headers["RateLimit-Remaining"] = str(decision.remaining)
    headers["RateLimit-Reset"] = str(_whole_seconds(decision))


def _whole_seconds(decision: Decision) -> int:
    return max(1, math.ceil(decision.reset_after_seconds))
