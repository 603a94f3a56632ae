"""Who it is, remembered in Redis: asked once, never past an end, and right again after outages."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth.models import RefreshToken
from app.core.database import Database
from app.core.events import record
from app.core.redis import RedisClient, RedisUnavailableError
from app.users.events import AccessChanged
from app.users.models import User
from devtools.valkey import ValkeyServer
from tests.fixtures.application import CountQueries, MakeApp, open_client
from tests.fixtures.authentication import PASSWORD, Account, Accounts

ME = "/api/v1/users/me"
AUTH = "/api/v1/auth"


class Process:
    """One process of the service: its requests, and its connection to Redis."""

    def __init__(self, client: httpx2.AsyncClient, state: dict[str, Any]) -> None:
        self.client = client
        self.state = state

    @property
    def redis(self) -> RedisClient:
        redis: RedisClient = self.state["redis"]
        return redis

    async def ask(self, user: Account) -> int:
        return (await self.client.get(f"{AUTH}/sessions", headers=user.headers)).status_code

    async def logout_all(self, user: Account) -> int:
        answer = await self.client.post(f"{AUTH}/logout-all", headers=user.headers)
        return answer.status_code

    async def until_available(self) -> None:
        """Wait until it has noticed that Redis is there."""
        with anyio.fail_after(30):
            while not self.redis.is_available:
                await anyio.sleep(0.02)


Start = Callable[..., AbstractAsyncContextManager[Process]]


@pytest.fixture
def start(make_app: MakeApp) -> Start:
    """Another process of the service: `async with start() as process`."""

    @asynccontextmanager
    async def run(**settings: Any) -> AsyncIterator[Process]:
        app = make_app(**settings)
        async with app.router.lifespan_context(app) as state, open_client(app, state) as client:
            yield Process(client, dict(state or {}))

    return run


@pytest.fixture
def process(anonymous_client: httpx2.AsyncClient, lifespan_state: dict[str, Any]) -> Process:
    return Process(anonymous_client, lifespan_state)


def entries(url: str) -> dict[str, int]:
    """What is remembered of tokens: key and milliseconds left."""
    with Redis.from_url(url) as redis:
        return {key.decode(): redis.pttl(key) for key in redis.scan_iter("*:auth:token:*")}


async def test_the_database_is_asked_once(
    process: Process, user: Account, count_queries: CountQueries, redis_url: str
) -> None:
    with count_queries() as first:
        assert await process.ask(user) == 200
    with count_queries() as second:
        assert await process.ask(user) == 200

    assert (first.count, second.count) == (2, 1)
    ((key, milliseconds),) = entries(redis_url).items()
    assert user.tokens.access_token not in key
    assert 0 < milliseconds <= 60_000


async def test_what_is_remembered_is_no_more_than_a_route_may_need(
    process: Process, user: Account, redis_url: str
) -> None:
    await process.ask(user)

    with Redis.from_url(redis_url) as redis:
        stored = redis.get(next(iter(entries(redis_url))))
    assert isinstance(stored, bytes)
    assert set(stored[64:-32].decode().split('"')[1::2]) >= {"role", "session_id", "expires_at"}
    for secret in (user.email, "argon2", user.tokens.access_token):
        assert secret.encode() not in stored


async def test_nothing_is_remembered_past_the_end_of_the_token(
    start: Start, redis_url: str
) -> None:
    async with start(ACCESS_TOKEN_EXPIRE_MINUTES=0.5) as process:
        user = await Accounts(process.state).add()
        await process.ask(user)

    assert 0 < entries(redis_url).popitem()[1] <= 30_000


async def test_nothing_is_remembered_past_the_end_of_the_session(
    process: Process, user: Account, database: Database, redis_url: str, start: Start
) -> None:
    async with start(REFRESH_TOKEN_EXPIRE_DAYS=20 / 86_400) as other:
        user = await Accounts(other.state).add()
        await other.ask(user)

    assert 0 < entries(redis_url).popitem()[1] <= 20_000


async def test_what_ends_access_in_one_process_is_seen_by_all(
    process: Process, start: Start, user: Account
) -> None:
    async with start() as other:
        assert (await process.ask(user), await other.ask(user)) == (200, 200)

        assert await other.logout_all(user) == 204

        assert (await process.ask(user), await other.ask(user)) == (401, 401)


async def test_after_a_change_the_database_is_asked_once_again(
    process: Process, user: Account, count_queries: CountQueries, redis_url: str
) -> None:
    form = {"username": user.email, "password": PASSWORD}
    elsewhere = (await process.client.post(f"{AUTH}/token", data=form)).json()
    body = {"refresh_token": elsewhere["refresh_token"]}
    await process.client.post(f"{AUTH}/logout", json=body)

    assert await process.ask(user) == 200
    with count_queries() as queries:
        assert await process.ask(user) == 200

    assert queries.count == 1


async def test_what_was_loaded_before_a_change_is_not_taken_after_it(
    process: Process, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = process.state["authenticator"]
    look_up = authenticator._database.look_up

    async def change_meanwhile(claims: Any) -> Any:
        found = await look_up(claims)
        monkeypatch.undo()
        assert await process.logout_all(user) == 204
        return found

    monkeypatch.setattr(authenticator._database, "look_up", change_meanwhile)

    # It began before the change, so it may pass; what it stores must not.
    assert await process.ask(user) == 200
    assert await process.ask(user) == 401


async def test_a_process_that_dies_after_its_commit_leaves_nothing_behind(
    process: Process, start: Start, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start() as dying:
        assert await process.ask(user) == 200

        async def die(_: Any) -> None:
            pass

        # Between the commit and what comes after it.
        monkeypatch.setattr(dying.state["events"], "run_after_commit", die)
        assert await dying.logout_all(user) == 204

    assert await process.ask(user) == 401


async def test_nothing_is_remembered_for_as_long_as_a_request_may_be_about_to_commit(
    start: Start, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(REQUEST_TIMEOUT_SECONDS=600) as dying:
        user = await Accounts(dying.state).add()

        async def die(_: Any) -> None:
            pass

        monkeypatch.setattr(dying.state["events"], "run_after_commit", die)
        assert await dying.logout_all(user) == 204

    with Redis.from_url(redis_url) as redis:
        [key] = redis.scan_iter(f"*:auth:changing:{user.id}")
        assert redis.pttl(key) > 600_000


async def test_a_change_that_is_rolled_back_changes_nothing(
    process: Process, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError

    assert await process.ask(user) == 200
    with monkeypatch.context() as patch:
        patch.setattr("sqlalchemy.ext.asyncio.AsyncSession.commit", fail)
        assert await process.logout_all(user) == 500

    assert await process.ask(user) == 200


async def test_an_entry_of_another_release_is_replaced(
    process: Process, user: Account, redis_url: str
) -> None:
    await process.ask(user)
    (key,) = entries(redis_url)
    with Redis.from_url(redis_url) as redis:
        stored = redis.get(key)
        assert isinstance(stored, bytes)
        redis.set(key, stored[:64] + b'{"role":"emperor"}' + bytes(32))

    assert await process.ask(user) == 200

    with Redis.from_url(redis_url) as redis:
        replaced = redis.get(key)
    assert isinstance(replaced, bytes)
    assert b"session_id" in replaced


async def test_the_database_answers_during_an_outage_and_what_ended_has_ended_after_it(
    start: Start, private_redis: ValkeyServer
) -> None:
    url = SecretStr(private_redis.start().url())
    settings = {"REDIS_URL": url, "REDIS_TIMEOUT_SECONDS": 1}
    async with start(**settings) as one, start(**settings) as other:
        user, kept = await Accounts(one.state).add(), await Accounts(one.state).add()
        for process in (one, other):
            assert (await process.ask(user), await process.ask(kept)) == (200, 200)
        # Unlike one that is killed it comes back with all that it has held.
        private_redis.pause()

        assert await one.logout_all(user) == 204
        assert (await one.ask(user), await one.ask(kept)) == (401, 200)
        assert not one.redis.is_available
        private_redis.resume()
        await one.until_available()

        # The other has not noticed: it was not asked meanwhile.
        for process in (other, one):
            assert (await process.ask(user), await process.ask(kept)) == (401, 200)


async def test_what_ended_while_redis_was_gone_is_forgotten_before_the_next_look(
    process: Process, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outage was over before its end could be noticed: no recovery will come."""

    async def refuse(_: Any) -> Any:
        raise RedisUnavailableError

    assert await process.ask(user) == 200
    with monkeypatch.context() as patch:
        patch.setattr(process.redis, "call", refuse)
        assert await process.logout_all(user) == 204

    assert await process.ask(user) == 401


async def test_sql_by_hand_is_seen_when_the_entry_ends(start: Start, database: Database) -> None:
    async with start(AUTH_CACHE_TTL_SECONDS=0.2) as process:
        user = await Accounts(process.state).add()
        assert await process.ask(user) == 200
        async with database.transaction() as session:
            await session.execute(update(User).where(User.id == user.id).values(is_active=False))
            await session.execute(update(RefreshToken).values(user_agent="touched"))

        with anyio.fail_after(30):
            while await process.ask(user) != 401:
                await anyio.sleep(0.05)


async def test_what_ended_while_nobody_reached_redis_has_ended_for_a_process_that_slept(
    start: Start, private_redis: ValkeyServer
) -> None:
    """Its client reconnects by itself, and would find what it has cached before."""
    settings = {"REDIS_URL": SecretStr(private_redis.start().url())}
    async with start(**settings) as idle:
        async with start(**settings) as dying:
            user, kept = await Accounts(dying.state).add(), await Accounts(dying.state).add()
            assert (await idle.ask(user), await idle.ask(kept)) == (200, 200)
            with Redis.from_url(private_redis.server.url()) as admin:
                admin.save()
            private_redis.kill()
            assert await dying.logout_all(user) == 204
        # The process that knew of it is gone; what was cached is there again.
        private_redis.start()
        assert len(entries(private_redis.server.url())) == 2

        assert (await idle.ask(user), await idle.ask(kept)) == (401, 200)
        assert idle.redis.is_available


async def test_the_end_of_one_change_is_not_the_end_of_another(
    process: Process, user: Account, count_queries: CountQueries
) -> None:
    database, events = process.state["database"], process.state["events"]

    async def begin() -> AccessChanged:
        event = AccessChanged(user_id=user.id, reason="logged_out")
        async with AsyncSession(database.engine) as session:
            record(session, event)
            await process.state["authenticator"]._before_change(event, session)
        return event

    first, second = await begin(), await begin()
    for ended, queries_of_the_second_request in ((first, 2), (second, 1)):
        await events.run_after_commit([ended])
        await process.ask(user)
        with count_queries() as queries:
            assert await process.ask(user) == 200
        assert queries.count == queries_of_the_second_request


@pytest.mark.parametrize("forged", ["a role", "another's entry"])
async def test_who_writes_to_redis_gives_nobody_a_role(
    process: Process, user: Account, admin: Account, redis_url: str, forged: str
) -> None:
    async def list_users() -> int:
        answer = await process.client.get("/api/v1/users", headers=user.headers)
        return answer.status_code

    assert await list_users() == 403
    with Redis.from_url(redis_url) as redis:
        [key] = entries(redis_url)
        stored = redis.get(key)
        assert isinstance(stored, bytes)
        if forged == "a role":
            redis.set(key, stored.replace(b'"user"', b'"admin"'))
        else:
            await process.client.get("/api/v1/users", headers=admin.headers)
            [other] = entries(redis_url).keys() - {key}
            taken = redis.get(other)
            assert isinstance(taken, bytes)
            redis.set(key, stored[:64] + taken[64:])

    assert await list_users() == 403


async def test_an_entry_that_somebody_keeps_alive_ends_nevertheless(
    start: Start, redis_url: str, database: Database
) -> None:
    async with start(AUTH_CACHE_TTL_SECONDS=0.3) as process:
        user = await Accounts(process.state).add()
        with anyio.fail_after(30), Redis.from_url(redis_url) as redis:
            # On a busy machine it may have ended before it could be kept.
            while not any(redis.persist(key) for key in entries(redis_url)):
                assert await process.ask(user) == 200
        async with database.transaction() as session:
            await session.execute(update(User).where(User.id == user.id).values(is_active=False))

        with anyio.fail_after(30):
            while await process.ask(user) != 401:
                await anyio.sleep(0.05)
