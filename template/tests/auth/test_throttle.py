"""Guessing passwords: limited for each account and each address, and the limits outlive errors."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import anyio
import httpx2
import pytest

from app.auth.exceptions import LoginThrottledError
from app.auth.throttle import LoginThrottle, ThrottleSettings
from app.core.errors import ServiceUnavailableError
from app.core.passwords import Passwords, Verified
from app.core.rate_limit import MemoryRateLimiter
from app.users.repository import UserRepository
from tests.fixtures.application import MakeApp
from tests.fixtures.authentication import PASSWORD, Account, Accounts

LogIn = Callable[[str, str], Awaitable[httpx2.Response]]


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> int:
        return int(self.seconds * 1_000_000_000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> LoginThrottle:
    return LoginThrottle(MemoryRateLimiter(clock=clock), ThrottleSettings(), b"secret")


async def fail(throttle: LoginThrottle, times: int, account: str, address: str) -> None:
    for _ in range(times):
        await throttle.admit(account, address)


async def wait_of(throttle: LoginThrottle, account: str, address: str) -> int:
    with pytest.raises(LoginThrottledError) as caught:
        await throttle.admit(account, address)
    assert caught.value.headers is not None
    return int(caught.value.headers["Retry-After"])


async def test_an_account_gets_fewer_attempts_the_longer_it_goes_on(
    throttle: LoginThrottle, clock: Clock
) -> None:
    waits = []
    for _ in range(4):
        await fail(throttle, 5, "ada", "here")
        waits.append(await wait_of(throttle, "ada", "here"))
        clock.seconds += waits[-1]

    assert waits == [60, 840, 60, 6240]


async def test_the_owner_is_not_locked_out_by_somebody_elsewhere(throttle: LoginThrottle) -> None:
    await fail(throttle, 5, "ada", "there")
    await wait_of(throttle, "ada", "there")

    await throttle.admit("ada", "here")


async def test_guessing_from_many_addresses_ends_as_well(throttle: LoginThrottle) -> None:
    for number in range(100):
        await throttle.admit("ada", f"address {number}")

    assert await wait_of(throttle, "ada", "another") == 3600
    await throttle.admit("bob", "another")


async def test_guessing_at_many_accounts_ends_as_well(throttle: LoginThrottle) -> None:
    for number in range(50):
        await throttle.admit(f"account {number}", "here")

    assert await wait_of(throttle, "another", "here") == 60
    await throttle.admit("another", "there")


async def test_successes_do_not_count(throttle: LoginThrottle) -> None:
    for _ in range(200):
        await (await throttle.admit("ada", "here")).succeed()


async def test_what_was_not_decided_does_not_count(throttle: LoginThrottle) -> None:
    await fail(throttle, 4, "ada", "here")
    await (await throttle.admit("ada", "here")).take_back()
    await throttle.admit("ada", "here")

    await wait_of(throttle, "ada", "here")


async def test_a_success_forgives_the_failures_before(throttle: LoginThrottle) -> None:
    for _ in range(10):
        await fail(throttle, 4, "ada", "here")
        await (await throttle.admit("ada", "here")).succeed()

    await fail(throttle, 5, "ada", "here")


async def test_a_success_does_not_forgive_guessing_at_others(throttle: LoginThrottle) -> None:
    for number in range(50):
        await throttle.admit(f"account {number}", "here")
        if number % 5 == 0:
            with suppress(LoginThrottledError):
                await (await throttle.admit("mallory", "here")).succeed()

    assert await wait_of(throttle, "another", "here") == 60


async def test_a_success_does_not_forgive_guessing_from_elsewhere(throttle: LoginThrottle) -> None:
    for number in range(100):
        await throttle.admit("ada", f"address {number}")
        if number == 50:
            await (await throttle.admit("ada", "here")).succeed()

    assert await wait_of(throttle, "ada", "another") == 3600


async def test_an_account_has_one_name_in_the_log_and_only_with_the_secret(
    throttle: LoginThrottle, clock: Clock
) -> None:
    other_service = LoginThrottle(MemoryRateLimiter(clock=clock), ThrottleSettings(), b"another")
    names = [
        (await throttle.admit("ada@people.example", "here")).account,
        (await throttle.admit("ada@people.example", "there")).account,
        (await throttle.admit("bob@people.example", "here")).account,
        (await other_service.admit("ada@people.example", "here")).account,
    ]

    assert names[0] == names[1]
    assert len(set(names)) == 3


async def test_refused_attempts_do_not_prolong_the_wait(
    throttle: LoginThrottle, clock: Clock
) -> None:
    await fail(throttle, 5, "ada", "here")
    for _ in range(100):
        await wait_of(throttle, "ada", "here")
    clock.seconds += 60

    await fail(throttle, 5, "ada", "here")


class TestApi:
    """The same through the API, where each failed attempt ends in an error."""

    @pytest.fixture
    def log_in(self, anonymous_client: httpx2.AsyncClient) -> LogIn:
        return _login_of(anonymous_client)

    async def test_after_five_failures_the_right_password_has_to_wait(
        self, log_in: LogIn, user: Account
    ) -> None:
        for _ in range(5):
            assert (await log_in(user.email, "wrong")).status_code == 401

        answer = await log_in(user.email, PASSWORD)

        assert answer.status_code == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert answer.json()["type"] == "urn:problem:login-throttled"

    async def test_who_logs_in_may_do_so_again_and_again(
        self, log_in: LogIn, user: Account
    ) -> None:
        statuses = [(await log_in(user.email, PASSWORD)).status_code for _ in range(7)]

        assert statuses == [200] * 7

    async def test_a_database_that_is_away_is_no_failure_of_theirs(
        self, log_in: LogIn, user: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def unavailable(*_: object) -> None:
            raise ServiceUnavailableError

        with monkeypatch.context() as patch:
            patch.setattr(UserRepository, "get_by_email", unavailable)
            for _ in range(6):
                assert (await log_in(user.email, PASSWORD)).status_code == 503

        assert (await log_in(user.email, PASSWORD)).status_code == 200

    async def test_an_attempt_that_is_cut_short_is_no_failure_of_theirs(
        self, log_in: LogIn, user: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(6):
            with monkeypatch.context() as patch, anyio.CancelScope() as scope:

                async def never(*_: object, _scope: anyio.CancelScope = scope) -> None:
                    _scope.cancel()
                    await anyio.sleep_forever()

                patch.setattr(Passwords, "verify", never)
                await log_in(user.email, PASSWORD)
            assert scope.cancelled_caught

        assert (await log_in(user.email, PASSWORD)).status_code == 200

    async def test_an_unknown_account_is_limited_alike(self, log_in: LogIn) -> None:
        statuses = [(await log_in("nobody@people.example", "wrong")).status_code for _ in range(6)]

        assert statuses == [401] * 5 + [429]

    async def test_another_account_may_go_on(
        self, log_in: LogIn, user: Account, other_user: Account
    ) -> None:
        for _ in range(6):
            await log_in(user.email, "wrong")

        assert (await log_in(other_user.email, PASSWORD)).status_code == 200

    async def test_spellings_of_one_address_are_one_account(
        self, log_in: LogIn, user: Account
    ) -> None:
        for spelling in (user.email, user.email.upper(), user.email.title()) * 2:
            await log_in(spelling, "wrong")

        assert (await log_in(user.email, PASSWORD)).status_code == 429


def _login_of(client: httpx2.AsyncClient) -> LogIn:
    async def log_in(username: str, password: str) -> httpx2.Response:
        form = {"username": username, "password": password}
        return await client.post("/api/v1/auth/token", data=form)

    return log_in


async def test_one_connection_with_many_networks_does_not_lock_the_owner_out(
    throttle: LoginThrottle,
) -> None:
    for number in range(200):
        address = f"2001:db8:1:{number:x}::/64"
        with suppress(LoginThrottledError):
            await throttle.admit("ada", address, "2001:db8:1::/48")

    await throttle.admit("ada", "here", "here")


async def test_guesses_from_many_networks_do_not_hold_up_whoever_comes_alone(
    make_app: MakeApp,
) -> None:
    """As many as may wait are waiting; the owner is served among the first."""
    app = make_app(PASSWORD_HASH_CONCURRENCY=1, PASSWORD_HASH_QUEUE_SIZE=6)
    async with app.router.lifespan_context(app) as opened, AsyncExitStack() as stack:
        state = dict(opened or {})
        owner = await Accounts(state).add()
        released, order = threading.Event(), []
        verify: Callable[[str, str | None], Verified] = state["passwords"]._verify

        def slow(password: str, password_hash: str | None) -> Verified:
            released.wait(30)
            order.append(password)
            return verify(password, password_hash)

        state["passwords"]._verify = slow

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        async def log_in(host: str, password: str) -> httpx2.Response:
            transport = httpx2.ASGITransport(app=with_state, client=(host, 1))
            client = httpx2.AsyncClient(transport=transport, base_url="http://testserver")
            await stack.enter_async_context(client)
            form = {"username": owner.email, "password": password}
            return await client.post("/api/v1/auth/token", data=form)

        async def waiting(count: int) -> None:
            with anyio.fail_after(30):
                queue = state["passwords"]._turns._waiting
                while sum(map(len, queue.values())) < count:
                    await anyio.sleep(0.01)

        guesses = [asyncio.create_task(log_in("192.0.2.1", f"guess {n}")) for n in range(4)]
        guesses += [asyncio.create_task(log_in("192.0.2.2", f"guess {n}")) for n in range(3)]
        try:
            await waiting(6)
            login = asyncio.create_task(log_in("192.0.2.3", PASSWORD))
            refused, _ = await asyncio.wait(
                guesses, return_when=asyncio.FIRST_COMPLETED, timeout=10
            )
        finally:
            released.set()
        answer = await login
        await asyncio.wait(guesses)

    assert [guess.result().status_code for guess in refused] == [503]
    assert int(refused.pop().result().headers["Retry-After"]) >= 1
    assert answer.status_code == 200
    assert order.index(PASSWORD) <= 3
