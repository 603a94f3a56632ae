"""What admins may do with the accounts of others, and that it holds from the next request on."""

from typing import Any

import anyio
import httpx2
import pytest

from app.core.security import Role
from app.users.service import UserService
from tests.fixtures.authentication import PASSWORD, Account, Accounts

USERS = "/api/v1/users"
ME = f"{USERS}/me"
NOBODY = f"{USERS}/019a0000-0000-7000-8000-000000000000"


@pytest.fixture
def admins_client(anonymous_client: httpx2.AsyncClient, admin: Account) -> httpx2.AsyncClient:
    anonymous_client.headers.update(admin.headers)
    return anonymous_client


async def log_in(client: httpx2.AsyncClient, user: Account) -> int:
    form = {"username": user.email, "password": PASSWORD}
    return (await client.post("/api/v1/auth/token", data=form)).status_code


async def refresh(client: httpx2.AsyncClient, user: Account) -> httpx2.Response:
    body = {"refresh_token": user.tokens.refresh_token}
    return await client.post("/api/v1/auth/refresh", json=body)


async def test_others_may_not(client: httpx2.AsyncClient, other_user: Account) -> None:
    path = f"{USERS}/{other_user.id}"
    answers = [
        await client.get(USERS),
        await client.get(path),
        await client.patch(path, json={"role": "admin"}),
        # Whoever may not look is not told that there is nothing.
        await client.get(NOBODY),
    ]
    assert [answer.status_code for answer in answers] == [403] * 4


async def test_all_accounts_are_listed_newest_first(
    admins_client: httpx2.AsyncClient, admin: Account, accounts: Accounts
) -> None:
    added = [admin, *[await accounts.add() for _ in range(4)]]
    listed: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await admins_client.get(USERS, params={"limit": 2, **cursor})).json()
        listed += [user["id"] for user in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert listed == [str(account.id) for account in reversed(added)]


async def test_an_account_is_read_by_its_id(
    admins_client: httpx2.AsyncClient, user: Account
) -> None:
    answer = await admins_client.get(f"{USERS}/{user.id}")
    assert (answer.status_code, answer.json()["email"]) == (200, user.email)
    assert "password_hash" not in answer.json()
    assert (await admins_client.get(NOBODY)).status_code == 404
    assert (await admins_client.patch(NOBODY, json={"role": "admin"})).status_code == 404


async def test_a_deactivated_user_cannot_do_anything(
    client: httpx2.AsyncClient, admins_client: httpx2.AsyncClient, user: Account
) -> None:
    path = f"{USERS}/{user.id}"
    assert (await client.get(ME)).is_success
    answer = await admins_client.patch(path, json={"is_active": False})
    assert (answer.status_code, answer.json()["is_active"]) == (200, False)
    assert (await client.get(ME)).status_code == 401
    assert (await refresh(admins_client, user)).status_code == 401
    assert await log_in(admins_client, user) == 401

    assert (await admins_client.patch(path, json={"is_active": True})).json()["is_active"] is True
    assert await log_in(admins_client, user) == 200
    # What ended stays ended.
    assert (await client.get(ME)).status_code == 401
    assert (await refresh(admins_client, user)).status_code == 401


async def test_a_new_role_holds_from_the_next_token_on_and_no_older_one_works(
    client: httpx2.AsyncClient, admins_client: httpx2.AsyncClient, user: Account
) -> None:
    path = f"{USERS}/{user.id}"
    assert (await client.get(USERS)).status_code == 403
    assert (await admins_client.patch(path, json={"role": "admin"})).json()["role"] == "admin"
    assert (await client.get(ME)).status_code == 401

    # The session goes on.
    tokens = (await refresh(admins_client, user)).json()
    client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    assert (await client.get(USERS)).is_success

    assert (await admins_client.patch(path, json={"role": "user"})).is_success
    assert (await client.get(USERS)).status_code == 401


async def test_what_is_no_change_ends_nothing(
    client: httpx2.AsyncClient, admins_client: httpx2.AsyncClient, user: Account
) -> None:
    before = (await client.get(ME)).json()
    for body in ({}, {"role": "user"}, {"is_active": True}, {"role": "user", "is_active": True}):
        assert (await admins_client.patch(f"{USERS}/{user.id}", json=body)).json() == before
    assert (await client.get(ME)).is_success


async def test_admins_cannot_change_their_own_access(
    admins_client: httpx2.AsyncClient, admin: Account
) -> None:
    bodies: list[dict[str, Any]] = [{"role": "user"}, {"is_active": False}, {}]
    for body in bodies:
        answer = await admins_client.patch(f"{USERS}/{admin.id}", json=body)
        assert answer.status_code == 409, body
        assert answer.json()["type"].endswith("own-access")
    assert (await admins_client.get(USERS)).is_success


@pytest.mark.parametrize("body", [{"role": "user"}, {"is_active": False}])
async def test_of_two_admins_who_end_each_others_access_at_once_one_is_left(
    admins_client: httpx2.AsyncClient,
    admin: Account,
    accounts: Accounts,
    monkeypatch: pytest.MonkeyPatch,
    body: dict[str, Any],
) -> None:
    other = await accounts.add(Role.ADMIN)
    update_access, waiting, both_passed = UserService.update_access, 0, anyio.Event()

    async def pass_the_guard_both_first(*arguments: Any) -> Any:
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both_passed.set()
        await both_passed.wait()
        return await update_access(*arguments)

    statuses: list[int] = []

    async def end_access(by: Account, of: Account) -> None:
        answer = await admins_client.patch(f"{USERS}/{of.id}", json=body, headers=by.headers)
        statuses.append(answer.status_code)

    monkeypatch.setattr(UserService, "update_access", pass_the_guard_both_first)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(end_access, admin, other)
            group.start_soon(end_access, other, admin)
    assert sorted(statuses) == [200, 403]


async def test_other_changes_are_refused(admins_client: httpx2.AsyncClient, user: Account) -> None:
    bodies: list[dict[str, Any]] = [
        {"role": "root"},
        {"role": None},
        {"is_active": None},
        {"is_active": "no"},
        {"email": "countess@example.com"},
    ]
    for body in bodies:
        answer = await admins_client.patch(f"{USERS}/{user.id}", json=body)
        assert answer.status_code == 422, body
