"""What ends access does so at once: the next request with an old token is refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from app.auth.repository import SessionRepository
from tests.fixtures.authentication import PASSWORD, Account, bearer

ME = "/api/v1/users/me"
AUTH = "/api/v1/auth"


class Ending:
    """The ways in which a user's access ends."""

    def __init__(self, client: httpx2.AsyncClient, user: Account, admin: Account) -> None:
        self._client = client
        self._user = user
        self._admin = admin

    async def logout(self) -> httpx2.Response:
        body = {"refresh_token": self._user.tokens.refresh_token}
        return await self._client.post(f"{AUTH}/logout", json=body)

    async def logout_all(self) -> httpx2.Response:
        return await self._client.post(f"{AUTH}/logout-all", headers=self._user.headers)

    async def end_session(self) -> httpx2.Response:
        sessions = await self._client.get(f"{AUTH}/sessions", headers=self._user.headers)
        path = f"{AUTH}/sessions/{sessions.json()['items'][0]['id']}"
        return await self._client.delete(path, headers=self._user.headers)

    async def change_password(self) -> httpx2.Response:
        body = {"current_password": PASSWORD, "new_password": "another engine, much longer"}
        return await self._client.post(f"{ME}/password", json=body, headers=self._user.headers)

    async def deactivate(self) -> httpx2.Response:
        return await self._update(is_active=False)

    async def change_role(self) -> httpx2.Response:
        return await self._update(role="admin")

    async def _update(self, **body: object) -> httpx2.Response:
        path = f"/api/v1/users/{self._user.id}"
        return await self._client.patch(path, json=body, headers=self._admin.headers)


WAYS: list[Callable[[Ending], Awaitable[httpx2.Response]]] = [
    Ending.logout,
    Ending.logout_all,
    Ending.end_session,
    Ending.change_password,
    Ending.deactivate,
    Ending.change_role,
]


@pytest.fixture
def ending(anonymous_client: httpx2.AsyncClient, user: Account, admin: Account) -> Ending:
    return Ending(anonymous_client, user, admin)


@pytest.mark.parametrize("way", WAYS)
async def test_the_next_request_with_an_old_token_is_refused(
    anonymous_client: httpx2.AsyncClient,
    user: Account,
    other_user: Account,
    ending: Ending,
    way: Callable[[Ending], Awaitable[httpx2.Response]],
) -> None:
    # Twice, so that whatever remembers tokens does.
    for _ in range(2):
        assert (await anonymous_client.get(ME, headers=user.headers)).status_code == 200

    assert (await way(ending)).status_code in (200, 204)

    assert (await anonymous_client.get(ME, headers=user.headers)).status_code == 401
    assert (await anonymous_client.get(ME, headers=other_user.headers)).status_code == 200


@pytest.mark.parametrize("way", WAYS)
async def test_the_refresh_token_ends_with_it_unless_only_the_role_has_changed(
    anonymous_client: httpx2.AsyncClient,
    user: Account,
    ending: Ending,
    way: Callable[[Ending], Awaitable[httpx2.Response]],
) -> None:
    await way(ending)

    body = {"refresh_token": user.tokens.refresh_token}
    answer = await anonymous_client.post(f"{AUTH}/refresh", json=body)

    assert answer.status_code == (200 if way is Ending.change_role else 401)


@pytest.mark.parametrize("way", [Ending.logout_all, Ending.logout])
async def test_a_refresh_that_is_under_way_does_not_survive_it(
    anonymous_client: httpx2.AsyncClient,
    user: Account,
    ending: Ending,
    way: Callable[[Ending], Awaitable[httpx2.Response]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use = SessionRepository.use
    ends: list[asyncio.Task[httpx2.Response]] = []

    async def end_meanwhile(self: SessionRepository, *arguments: Any) -> Any:
        used = await use(self, *arguments)
        ends.append(asyncio.create_task(_run(way, ending)))
        # It has to wait for this transaction, so its end cannot be awaited here.
        await asyncio.wait(ends, timeout=0.5)
        return used

    body = {"refresh_token": user.tokens.refresh_token}
    with monkeypatch.context() as patch:
        patch.setattr(SessionRepository, "use", end_meanwhile)
        pair = (await anonymous_client.post(f"{AUTH}/refresh", json=body)).json()
    assert (await ends[0]).status_code == 204

    again = {"refresh_token": pair["refresh_token"]}
    assert (await anonymous_client.post(f"{AUTH}/refresh", json=again)).status_code == 401
    me = await anonymous_client.get(ME, headers=bearer(pair["access_token"]))
    assert me.status_code == 401


async def _run(
    way: Callable[[Ending], Awaitable[httpx2.Response]], ending: Ending
) -> httpx2.Response:
    return await way(ending)


async def test_a_new_login_works_after_it(
    anonymous_client: httpx2.AsyncClient, user: Account, ending: Ending
) -> None:
    await ending.logout_all()

    form = {"username": user.email, "password": PASSWORD}
    pair = (await anonymous_client.post(f"{AUTH}/token", data=form)).json()

    me = await anonymous_client.get(ME, headers=bearer(pair["access_token"]))
    assert me.status_code == 200
