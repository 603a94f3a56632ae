"""Changing the password: who may, and what it ends."""

import json
from typing import Any

import anyio
import httpx2
import pytest

from app.core.database import Database
from app.core.passwords import Passwords, Verified
from app.users.repository import UserRepository
from tests.fixtures.authentication import PASSWORD, Account

ME = "/api/v1/users/me"
NEW_PASSWORD = "notes on the analytical engine"


async def change(
    client: httpx2.AsyncClient, current: str = PASSWORD, new: str = NEW_PASSWORD
) -> httpx2.Response:
    body = {"current_password": current, "new_password": new}
    return await client.post(f"{ME}/password", json=body)


async def log_in(client: httpx2.AsyncClient, user: Account, password: str) -> int:
    form = {"username": user.email, "password": password}
    return (await client.post("/api/v1/auth/token", data=form)).status_code


async def test_the_new_password_holds_from_now_on(
    client: httpx2.AsyncClient, user: Account
) -> None:
    answer = await change(client)
    assert (answer.status_code, answer.content) == (204, b"")
    assert await log_in(client, user, NEW_PASSWORD) == 200
    assert await log_in(client, user, PASSWORD) == 401


async def test_every_session_ends_with_the_old_one(
    client: httpx2.AsyncClient, user: Account, anonymous_client: httpx2.AsyncClient
) -> None:
    assert (await client.get(ME)).is_success
    assert (await change(client)).is_success
    assert (await client.get(ME)).status_code == 401
    refresh = {"refresh_token": user.tokens.refresh_token}
    assert (await anonymous_client.post("/api/v1/auth/refresh", json=refresh)).status_code == 401


async def test_tokens_of_the_old_password_are_void_by_themselves(
    client: httpx2.AsyncClient, user: Account, database: Database
) -> None:
    assert (await change(client)).is_success
    async with database.read_only() as session:
        changed = await UserRepository(session).get(user.id)
    assert changed is not None
    assert changed.token_epoch == 1


async def test_a_token_without_the_password_changes_nothing(
    client: httpx2.AsyncClient, user: Account
) -> None:
    answer = await change(client, current="not the password of Ada")
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["errors"]] == [["body", "current_password"]]
    assert (await client.get(ME)).is_success
    assert await log_in(client, user, PASSWORD) == 200


@pytest.mark.parametrize("new", ["password1234", "too short", "x9$kQ2!mZ7&p" * 11, PASSWORD])
async def test_a_new_password_must_be_new_and_hard_to_guess(
    client: httpx2.AsyncClient, user: Account, new: str
) -> None:
    answer = await change(client, new=new)
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["errors"]] == [["body", "new_password"]]
    assert await log_in(client, user, PASSWORD) == 200


@pytest.mark.parametrize("field", ["current_password", "new_password"])
async def test_half_a_character_is_refused(client: httpx2.AsyncClient, field: str) -> None:
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    # Not json=, which cannot write it.
    content = json.dumps({**body, field: f"{body[field]}\ud800"})
    answer = await client.post(
        f"{ME}/password", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["errors"]] == [["body", field]]


async def test_guessing_the_current_password_is_limited(client: httpx2.AsyncClient) -> None:
    for _ in range(10):
        assert (await change(client, new="password1234")).status_code == 422
    assert (await change(client)).status_code == 429


async def test_of_two_changes_at_once_one_is_made(
    client: httpx2.AsyncClient, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, waiting, both_verified = Passwords.verify, 0, anyio.Event()

    async def verify_both_first(*arguments: Any) -> Verified:
        nonlocal waiting
        verified = await verify(*arguments)
        waiting += 1
        if waiting == 2:
            both_verified.set()
        await both_verified.wait()
        return verified

    statuses: dict[str, int] = {}

    async def change_to(new: str) -> None:
        statuses[new] = (await change(client, new=new)).status_code

    with monkeypatch.context() as patch, anyio.fail_after(30):
        patch.setattr(Passwords, "verify", verify_both_first)
        async with anyio.create_task_group() as group:
            group.start_soon(change_to, "notes on the first engine")
            group.start_soon(change_to, "notes on the second engine")
    assert sorted(statuses.values()) == [204, 422]
    for new, status in statuses.items():
        assert await log_in(client, user, new) == (200 if status == 204 else 401)


async def test_no_connection_is_held_while_a_password_is_hashed(
    client: httpx2.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    for name in ("verify", "hash"):
        original = getattr(Passwords, name)

        async def look(*arguments: Any, _original: Any = original) -> Any:
            held.append(database.engine.pool.checkedout())  # type: ignore[attr-defined]
            return await _original(*arguments)

        monkeypatch.setattr(Passwords, name, look)
    assert (await change(client)).is_success
    assert held == [0, 0]
