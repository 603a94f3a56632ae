"""Rate limits: the sliding window and the dependency in front of routes."""

import asyncio
import random

import pytest
from starlette.requests import HTTPConnection

from app.core.principal import Principal, set_principal
from app.core.rate_limit import MemoryRateLimiter, RateLimit, caller, rate_limit

SECOND = 1_000_000_000


class Clock:
    """A clock that the test moves; starts where a rounding error would show."""

    def __init__(self) -> None:
        self.now = 987_654_321_123_456_789

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> MemoryRateLimiter:
    return MemoryRateLimiter(clock=clock)


async def test_exactly_the_limit_of_many_concurrent_requests_passes() -> None:
    limiter = MemoryRateLimiter()
    decisions = await asyncio.gather(*(limiter.hit("k", RateLimit(10, 60)) for _ in range(100)))
    assert sum(decision.allowed for decision in decisions) == 10
    assert sorted(d.remaining for d in decisions if d.allowed) == list(range(10))


async def test_no_window_anywhere_holds_more_than_the_limit(
    limiter: MemoryRateLimiter, clock: Clock
) -> None:
    limit = RateLimit(5, 10)
    chance = random.Random(7)
    passed: list[int] = []
    for _ in range(3000):
        clock.advance(chance.choice([0, 0.01, 0.5, 3]))
        if (await limiter.hit("k", limit)).allowed:
            passed.append(clock.now)
    assert len(passed) > 100
    # The sixth after any request is at least a whole window later.
    for first, sixth in zip(passed, passed[5:], strict=False):
        assert sixth - first >= 10 * SECOND


async def test_a_steady_rate_just_below_the_limit_is_never_refused(
    limiter: MemoryRateLimiter, clock: Clock
) -> None:
    for _ in range(2000):
        assert (await limiter.hit("k", RateLimit(100, 60))).allowed
        clock.advance(60 / 100)


async def test_waiting_as_long_as_told_is_enough_and_any_less_is_not(
    limiter: MemoryRateLimiter, clock: Clock
) -> None:
    limit = RateLimit(2, 60)
    await limiter.hit("k", limit)
    clock.advance(20.5)
    await limiter.hit("k", limit)
    refused = await limiter.hit("k", limit)
    assert not refused.allowed
    assert refused.remaining == 0
    assert refused.reset_after_seconds == 39.5
    clock.advance(39.499)
    assert not (await limiter.hit("k", limit)).allowed
    clock.advance(0.001)
    assert (await limiter.hit("k", limit)).allowed


async def test_requests_stop_counting_one_by_one_and_after_a_pause_all_at_once(
    limiter: MemoryRateLimiter, clock: Clock
) -> None:
    limit = RateLimit(3, 60)
    for _ in range(3):
        clock.advance(10)
        await limiter.hit("k", limit)
    clock.advance(40)
    assert (await limiter.hit("k", limit)).remaining == 0
    clock.advance(60)
    assert (await limiter.hit("k", limit)).remaining == 2


async def test_refused_requests_do_not_prolong_the_wait(
    limiter: MemoryRateLimiter, clock: Clock
) -> None:
    limit = RateLimit(1, 10)
    await limiter.hit("k", limit)
    for _ in range(99):
        clock.advance(0.1)
        assert not (await limiter.hit("k", limit)).allowed
    clock.advance(0.1)
    assert (await limiter.hit("k", limit)).allowed


async def test_a_flood_of_keys_takes_bounded_memory_and_forgets_the_longest_unseen(
    clock: Clock,
) -> None:
    limiter = MemoryRateLimiter(max_keys=100, clock=clock)
    limit = RateLimit(1, 60)
    await limiter.hit("regular", limit)
    for number in range(10_000):
        await limiter.hit(f"flood {number}", limit)
        assert not (await limiter.hit("regular", limit)).allowed
    assert len(limiter) == 100


async def test_finished_windows_are_dropped_without_a_sweep(
    limiter: MemoryRateLimiter, clock: Clock
) -> None:
    for number in range(1000):
        await limiter.hit(f"early {number}", RateLimit(1, 60))
    clock.advance(60)
    for number in range(600):
        await limiter.hit(f"late {number}", RateLimit(1, 60))
    assert len(limiter) == 600


def connection(host: str | None) -> HTTPConnection:
    return HTTPConnection(
        {"type": "http", "state": {}, "client": (host, 1234) if host is not None else None}
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("fe80::1%eth0", "fe80::2"),
    ],
)
def test_addresses_of_one_subscriber_are_one_caller(one: str, other: str) -> None:
    assert caller(connection(one)) == caller(connection(other))


def test_other_subscribers_are_other_callers() -> None:
    hosts = ["192.0.2.1", "192.0.2.2", "2001:db8:1:2::1", "2001:db8:1:3::1", "not:an:address", None]
    assert len({caller(connection(host)) for host in hosts}) == len(hosts)


def test_a_principal_is_the_same_caller_from_every_address() -> None:
    callers = set()
    for host in ("192.0.2.1", "192.0.2.2"):
        known = connection(host)
        set_principal(known, Principal("42"))
        callers.add(caller(known))
    assert len(callers) == 1
    # Whatever a principal is called, it is never taken for an address.
    named_like_an_address = connection("192.0.2.9")
    set_principal(named_like_an_address, Principal("192.0.2.1"))
    assert caller(named_like_an_address) != caller(connection("192.0.2.1"))


@pytest.mark.parametrize(("requests", "window"), [(0, 60), (-1, 60), (1, 0), (1, -5)])
def test_a_limit_that_lets_nothing_through_is_refused_where_it_is_written(
    requests: int, window: float
) -> None:
    with pytest.raises(ValueError, match="at least one"):
        rate_limit(requests, window)


@pytest.mark.parametrize("used", [2, 3, 4])
async def test_a_flood_of_keys_does_not_set_free_who_is_refused_or_close_to_it(
    clock: Clock, used: int
) -> None:
    limiter = MemoryRateLimiter(max_keys=100, clock=clock)
    limit = RateLimit(3, 60)
    for _ in range(used):
        await limiter.hit("guessing", limit)
    for number in range(1000):
        await limiter.hit(f"flood {number}", limit)
    left = [(await limiter.hit("guessing", limit)).allowed for _ in range(2)]
    assert left == [used < 3, False]


async def test_many_who_are_refused_leave_room_for_others(clock: Clock) -> None:
    limiter = MemoryRateLimiter(max_keys=100, clock=clock)
    limit = RateLimit(2, 60)
    for number in range(1000):
        for _ in range(3):
            await limiter.hit(f"flood {number}", limit)
    assert len(limiter) == 100
    # Two newcomers do not take the place of each other.
    for _ in range(2):
        assert (await limiter.hit("one", RateLimit(10, 60))).allowed
        assert (await limiter.hit("other", RateLimit(10, 60))).allowed
    assert (await limiter.hit("one", RateLimit(10, 60))).remaining == 7
