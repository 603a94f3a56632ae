"""Refresh tokens: good once, with a grace for one client, and an alarm when they come back."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from structlog.testing import capture_logs

from app.auth import tokens
from app.auth.handlers import purge_expired_tokens
from app.auth.models import RefreshToken
from app.core.database import Database
from app.users.models import User
from tests.fixtures.application import MakeApp
from tests.fixtures.authentication import Account, bearer

REFRESH = "/api/v1/auth/refresh"
ME = "/api/v1/users/me"

Refresh = Callable[[str], Awaitable[httpx2.Response]]
Rows = Callable[[], Awaitable[list[RefreshToken]]]
Alter = Callable[..., Awaitable[None]]


@pytest.fixture
def app(share_app: MakeApp) -> FastAPI:
    """The application, with patience: on a slow machine 50 requests at once end in 503."""
    return share_app(
        DB_POOL_TIMEOUT_SECONDS=120, DB_LOCK_TIMEOUT_SECONDS=120, REQUEST_TIMEOUT_SECONDS=120
    )


@pytest.fixture
def refresh(anonymous_client: httpx2.AsyncClient) -> Refresh:
    async def send(token: str) -> httpx2.Response:
        return await anonymous_client.post(REFRESH, json={"refresh_token": token})

    return send


@pytest.fixture
def rows(database: Database, user: Account) -> Rows:
    """The user's refresh tokens, oldest first."""

    async def read() -> list[RefreshToken]:
        async with database.read_only() as session:
            found = await session.scalars(
                select(RefreshToken)
                .where(RefreshToken.user_id == user.id)
                .order_by(RefreshToken.id)
            )
            return list(found)

    return read


@pytest.fixture
def alter(database: Database) -> Alter:
    """Changes a refresh token as time would."""

    async def change(token: str, **values: Any) -> None:
        async with database.transaction() as session:
            await session.execute(
                update(RefreshToken)
                .where(RefreshToken.token_hash == tokens.hash_token(token))
                .values(values)
            )

    return change


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


async def test_a_refresh_gives_the_next_pair(
    anonymous_client: httpx2.AsyncClient, user: Account, refresh: Refresh, rows: Rows
) -> None:
    answer = await refresh(user.tokens.refresh_token)

    pair = answer.json()
    assert answer.status_code == 200
    assert set(pair) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert pair["refresh_token"] != user.tokens.refresh_token
    for token in (user.tokens.access_token, pair["access_token"]):
        # The session goes on, and so does what was issued before.
        assert (await anonymous_client.get(ME, headers=bearer(token))).status_code == 200
    parent, child = await rows()
    assert (child.parent_id, child.family_id) == (parent.id, parent.family_id)
    assert (await refresh(pair["refresh_token"])).status_code == 200


async def test_nothing_stored_is_a_token(user: Account, refresh: Refresh, rows: Rows) -> None:
    child = (await refresh(user.tokens.refresh_token)).json()["refresh_token"]

    stored = [str(vars(row)) for row in await rows()]

    assert len(stored) == 2
    assert not any(token in text for token in (child, user.tokens.refresh_token) for text in stored)


@pytest.mark.parametrize("token", ["unknown", "x" * 512, "a b\nc", "日本"])
async def test_an_unknown_token_is_refused(refresh: Refresh, token: str) -> None:
    answer = await refresh(token)

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["type"] == "urn:problem:invalid-refresh-token"


@pytest.mark.parametrize("token", ["", "x" * 513, None, 1])
async def test_what_cannot_be_a_token_is_refused(refresh: Refresh, token: Any) -> None:
    answer = await refresh(token)

    assert answer.status_code == 422
    assert "xxxx" not in answer.text


async def test_an_access_token_refreshes_nothing(user: Account, refresh: Refresh) -> None:
    assert (await refresh(user.tokens.access_token)).status_code in (401, 422)


async def test_a_token_that_comes_back_ends_the_session_for_good(
    anonymous_client: httpx2.AsyncClient,
    user: Account,
    refresh: Refresh,
    alter: Alter,
    rows: Rows,
) -> None:
    pair = (await refresh(user.tokens.refresh_token)).json()
    await alter(user.tokens.refresh_token, used_at=ago(11))

    reused = await refresh(user.tokens.refresh_token)

    assert reused.status_code == 401
    # Committed, although the request has failed.
    assert (await rows())[-1].revoked_at is not None
    assert (await refresh(pair["refresh_token"])).status_code == 401
    me = await anonymous_client.get(ME, headers=bearer(pair["access_token"]))
    assert me.status_code == 401


async def test_reuse_ends_one_session_and_no_other(
    user: Account, refresh: Refresh, alter: Alter, client: httpx2.AsyncClient, other_user: Account
) -> None:
    form = {"username": user.email, "password": "long-enough for Ada's engine"}
    elsewhere = (await client.post("/api/v1/auth/token", data=form)).json()
    await refresh(user.tokens.refresh_token)
    await alter(user.tokens.refresh_token, used_at=ago(11))

    assert (await refresh(user.tokens.refresh_token)).status_code == 401

    assert (await refresh(elsewhere["refresh_token"])).status_code == 200
    assert (await refresh(other_user.tokens.refresh_token)).status_code == 200


async def test_within_the_grace_the_parent_is_exchanged_for_the_same_child(
    user: Account, refresh: Refresh, alter: Alter, rows: Rows
) -> None:
    first = await refresh(user.tokens.refresh_token)
    await alter(user.tokens.refresh_token, used_at=ago(5))

    again = await refresh(user.tokens.refresh_token)

    assert again.status_code == 200
    assert again.json()["refresh_token"] == first.json()["refresh_token"]
    assert len(await rows()) == 2
    assert (await refresh(first.json()["refresh_token"])).status_code == 200


async def test_an_exchange_within_the_grace_does_not_prolong_it(
    user: Account, refresh: Refresh, alter: Alter, rows: Rows
) -> None:
    await refresh(user.tokens.refresh_token)
    used_at = ago(5)
    await alter(user.tokens.refresh_token, used_at=used_at)

    await refresh(user.tokens.refresh_token)

    assert (await rows())[0].used_at == used_at


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"revoked_at": ago(1)}, "revoked"), ({"expires_at": ago(1)}, "expired")],
)
async def test_a_used_token_of_a_session_that_is_over_raises_no_alarm(
    user: Account, refresh: Refresh, alter: Alter, values: dict[str, Any], reason: str
) -> None:
    child = (await refresh(user.tokens.refresh_token)).json()["refresh_token"]
    await alter(child, **values)
    if "expires_at" in values:
        await alter(user.tokens.refresh_token, **values)

    with capture_logs() as logged:
        assert (await refresh(user.tokens.refresh_token)).status_code == 401

    [entry] = [entry for entry in logged if entry["event"].startswith("auth.")]
    assert (entry["event"], entry["reason"]) == ("auth.refresh_failed", reason)


async def test_a_session_has_one_unused_token_whatever_the_code_does(
    user: Account, refresh: Refresh, alter: Alter
) -> None:
    await refresh(user.tokens.refresh_token)

    with pytest.raises(IntegrityError):
        await alter(user.tokens.refresh_token, used_at=None)


async def test_an_older_token_is_reuse_within_the_grace_too(
    user: Account, refresh: Refresh
) -> None:
    child = (await refresh(user.tokens.refresh_token)).json()["refresh_token"]
    grandchild = (await refresh(child)).json()["refresh_token"]

    assert (await refresh(user.tokens.refresh_token)).status_code == 401

    assert (await refresh(grandchild)).status_code == 401


async def test_the_latest_used_token_has_its_grace_whatever_came_before(
    user: Account, refresh: Refresh
) -> None:
    child = (await refresh(user.tokens.refresh_token)).json()["refresh_token"]
    grandchild = (await refresh(child)).json()["refresh_token"]

    again = await refresh(child)

    assert again.json()["refresh_token"] == grandchild


async def test_many_refreshes_at_once_leave_one_line_and_one_token(
    user: Account, refresh: Refresh, rows: Rows
) -> None:
    answers = await asyncio.gather(*(refresh(user.tokens.refresh_token) for _ in range(12)))

    assert {answer.status_code for answer in answers} == {200}
    children = {answer.json()["refresh_token"] for answer in answers}
    assert len(children) == 1
    parent, child = await rows()
    assert child.parent_id == parent.id
    assert (parent.used_at is None, child.used_at) == (False, None)
    assert tokens.hash_token(children.pop()) == child.token_hash


class TestWithoutGrace:
    """What the grace is an exception to."""

    @pytest.fixture
    def app(self, share_app: MakeApp) -> FastAPI:
        return share_app(
            REFRESH_GRACE_SECONDS=0,
            DB_POOL_TIMEOUT_SECONDS=120,
            DB_LOCK_TIMEOUT_SECONDS=120,
            REQUEST_TIMEOUT_SECONDS=120,
        )

    async def test_of_many_refreshes_at_once_one_succeeds_and_the_session_ends(
        self, user: Account, refresh: Refresh, rows: Rows
    ) -> None:
        answers = await asyncio.gather(*(refresh(user.tokens.refresh_token) for _ in range(12)))

        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(200), statuses.count(401)) == (1, 11)
        assert len(await rows()) == 2
        assert (await rows())[-1].revoked_at is not None


async def test_a_session_that_is_not_refreshed_ends(
    anonymous_client: httpx2.AsyncClient, user: Account, refresh: Refresh, alter: Alter
) -> None:
    await alter(user.tokens.refresh_token, expires_at=ago(1))

    assert (await refresh(user.tokens.refresh_token)).status_code == 401
    assert (await anonymous_client.get(ME, headers=user.headers)).status_code == 401


async def test_refreshing_does_not_prolong_a_session_for_ever(
    user: Account, refresh: Refresh, alter: Alter, rows: Rows
) -> None:
    end = datetime.now(UTC) + timedelta(days=1)
    await alter(user.tokens.refresh_token, family_expires_at=end)

    await refresh(user.tokens.refresh_token)

    child = (await rows())[-1]
    assert child.expires_at == child.family_expires_at == end


async def test_a_refresh_prolongs_an_idle_session(
    user: Account, refresh: Refresh, alter: Alter, rows: Rows
) -> None:
    await alter(user.tokens.refresh_token, expires_at=datetime.now(UTC) + timedelta(days=1))

    await refresh(user.tokens.refresh_token)

    assert (await rows())[-1].expires_at > datetime.now(UTC) + timedelta(days=29)


async def test_a_role_is_taken_over_by_the_next_refresh(
    anonymous_client: httpx2.AsyncClient, user: Account, admin: Account, refresh: Refresh
) -> None:
    changed = await anonymous_client.patch(
        f"/api/v1/users/{user.id}", json={"role": "admin"}, headers=admin.headers
    )
    assert changed.status_code == 200

    pair = (await refresh(user.tokens.refresh_token)).json()

    listed = await anonymous_client.get("/api/v1/users", headers=bearer(pair["access_token"]))
    assert listed.status_code == 200


async def test_a_deactivated_user_refreshes_nothing(
    user: Account, refresh: Refresh, database: Database
) -> None:
    # Without the event that would end the session as well.
    async with database.transaction() as session:
        await session.execute(update(User).where(User.id == user.id).values(is_active=False))

    assert (await refresh(user.tokens.refresh_token)).status_code == 401


async def test_expired_tokens_are_purged(
    user: Account, other_user: Account, alter: Alter, rows: Rows, database: Database
) -> None:
    await alter(user.tokens.refresh_token, expires_at=ago(1))

    await purge_expired_tokens(database)

    assert await rows() == []
    async with database.read_only() as session:
        assert len((await session.scalars(select(RefreshToken))).all()) == 1


class Ahead(datetime):
    """The clock of a process on another machine, which is five minutes ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Ahead":
        return cls.fromtimestamp(datetime.now(tz).timestamp() + 300, tz)


@contextmanager
def another_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("authenticator", "handlers", "repository", "service"):
            patch.setattr(f"app.auth.{name}.datetime", Ahead, raising=False)
        yield


@pytest.mark.parametrize("order", [(nullcontext, another_process), (another_process, nullcontext)])
async def test_processes_whose_clocks_differ_agree_on_the_grace(
    user: Account,
    refresh: Refresh,
    alter: Alter,
    order: tuple[Callable[[], AbstractContextManager[None]], ...],
) -> None:
    first, second = order
    with first():
        child = (await refresh(user.tokens.refresh_token)).json()["refresh_token"]
    with second():
        again = await refresh(user.tokens.refresh_token)
        assert (again.status_code, again.json().get("refresh_token")) == (200, child)
    await alter(user.tokens.refresh_token, used_at=ago(11))
    with first():
        assert (await refresh(user.tokens.refresh_token)).status_code == 401


async def test_processes_whose_clocks_differ_agree_on_the_end_of_a_session(
    anonymous_client: httpx2.AsyncClient, user: Account, refresh: Refresh, alter: Alter
) -> None:
    with another_process():
        child = (await refresh(user.tokens.refresh_token)).json()
        await alter(child["refresh_token"], expires_at=ago(-60))
        listed = await anonymous_client.get(
            "/api/v1/auth/sessions", headers=bearer(child["access_token"])
        )
        assert listed.status_code == 200
        assert len(listed.json()["items"]) == 1
        assert (await refresh(child["refresh_token"])).status_code == 200
