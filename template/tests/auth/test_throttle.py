"""Guessing passwords: limited for each account and each address, and the limits outlive errors."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import httpx2
import pytest

from app.auth.exceptions import LoginThrottledError
from app.auth.throttle import LoginThrottle, ThrottleSettings
from app.core.errors import ServiceUnavailableError
from app.core.passwords import Passwords
from app.core.rate_limit import MemoryRateLimiter
from app.users.repository import UserRepository
from tests.fixtures.authentication import PASSWORD, Account

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
