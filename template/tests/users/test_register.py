"""Registering: what makes an account, what is refused, and what is revealed."""

import json
from typing import Any

import anyio
import httpx2
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.testing import capture_logs

from app.core.database import Database
from app.core.errors import ConflictError
from app.core.events import EventBus
from app.users.events import UserRegistered
from app.users.repository import UserRepository
from tests.fixtures.application import Connect, MakeApp
from tests.fixtures.authentication import EMAIL_DOMAIN, PASSWORD

USERS = "/api/v1/users"
EMAIL = f"ada@{EMAIL_DOMAIN}"


def account(**changes: Any) -> dict[str, Any]:
    return {"email": EMAIL, "password": PASSWORD, **changes}


async def log_in(client: httpx2.AsyncClient) -> httpx2.Response:
    form = {"username": EMAIL, "password": PASSWORD}
    return await client.post("/api/v1/auth/token", data=form)


async def test_whoever_registers_can_log_in(anonymous_client: httpx2.AsyncClient) -> None:
    body = account(email=f"ADA@{EMAIL_DOMAIN.upper()}", full_name="  Ada   Lovelace ")
    answer = await anonymous_client.post(USERS, json=body)
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{USERS}/me"
    user = answer.json()
    assert (user["email"], user["full_name"]) == (EMAIL, "Ada Lovelace")
    assert (user["role"], user["is_active"]) == ("user", True)
    assert not {"password", "password_hash", "token_epoch"} & user.keys()

    token = (await log_in(anonymous_client)).json()["access_token"]
    me = await anonymous_client.get(f"{USERS}/me", headers={"Authorization": f"Bearer {token}"})
    assert me.json() == user


async def test_a_name_may_join_and_part_its_letters(anonymous_client: httpx2.AsyncClient) -> None:
    name = "क्\u200dष నార్\u200cడ్ 👩\u200d🚀"
    answer = await anonymous_client.post(USERS, json=account(full_name=name))
    assert (answer.status_code, answer.json()["full_name"]) == (201, name)


async def test_an_address_has_one_account_however_it_is_spelled(
    anonymous_client: httpx2.AsyncClient,
) -> None:
    assert (await anonymous_client.post(USERS, json=account())).status_code == 201
    answer = await anonymous_client.post(USERS, json=account(email=EMAIL.title()))
    assert answer.status_code == 409
    assert answer.json()["type"].endswith("email-taken")
    assert EMAIL not in answer.text.lower()


async def test_of_those_who_register_an_address_at_once_one_gets_it(
    anonymous_client: httpx2.AsyncClient,
) -> None:
    statuses: list[int] = []

    async def register() -> None:
        statuses.append((await anonymous_client.post(USERS, json=account())).status_code)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(register)
    assert sorted(statuses) == [201, 409, 409, 409, 409]


async def test_by_setting_nobody_is_told_whether_an_address_is_taken(
    make_app: MakeApp, connect: Connect
) -> None:
    async with connect(make_app(REGISTRATION_REVEALS_ACCOUNTS=False)) as client:
        answers = [await client.post(USERS, json=account()) for _ in range(2)]
        assert (await log_in(client)).is_success
    differing = {"x-request-id", "ratelimit-remaining", "ratelimit-reset"}
    shown = [
        (answer.status_code, answer.content, set(answer.headers.items()))
        for answer in answers
        if [answer.headers.pop(name, None) for name in differing]
    ]
    assert shown[0] == shown[1]
    assert shown[0][:2] == (202, b"")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"password": "password1234"}, "password"),
    ({"password": "ada@people.example"}, "password"),
    ({"password": "ada-lovelace", "full_name": "Ada Lovelace"}, "password"),
    ({"password": "x9$kQ2!mZ7&"}, "password"),
    ({"password": "x9$kQ2!mZ7&p" * 11}, "password"),
    ({"password": "\ufb03" * 43}, "password"),
    ({"password": None}, "password"),
    ({"password": "\ud800" * 12}, "password"),
    ({"password": f"{PASSWORD}\ud800"}, "password"),
    ({"email": "ada"}, "email"),
    ({"email": "Ada <ada@example.com>"}, "email"),
    ({"full_name": " "}, "full_name"),
    ({"full_name": "\u200d \u200c"}, "full_name"),
    ({"full_name": "Ada\u0000Lovelace"}, "full_name"),
    ({"full_name": "Ada \u202elovelace"}, "full_name"),
    ({"full_name": "A" * 201}, "full_name"),
    ({"full_name": "\ud800"}, "full_name"),
    ({"role": "admin"}, "role"),
    ({"is_active": True}, "is_active"),
]


async def test_what_cannot_be_an_account_is_refused(anonymous_client: httpx2.AsyncClient) -> None:
    for changes, field in REFUSED:
        # Not json=, which cannot write half a character.
        body = json.dumps(account(**changes))
        answer = await anonymous_client.post(
            USERS, content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 422, changes
        assert [error["loc"] for error in answer.json()["errors"]] == [["body", field]], changes
        assert str(changes.get("password", PASSWORD)) not in answer.text


async def test_registering_is_limited_for_each_address(
    anonymous_client: httpx2.AsyncClient,
) -> None:
    # Refused ones count as well, and are cheaper.
    for _ in range(20):
        assert (await anonymous_client.post(USERS, json={})).status_code == 422
    answer = await anonymous_client.post(USERS, json=account())
    assert answer.status_code == 429
    assert "Retry-After" in answer.headers


async def test_others_hear_of_a_new_account(
    anonymous_client: httpx2.AsyncClient, lifespan_state: dict[str, Any]
) -> None:
    heard: list[str] = []

    async def listen(event: UserRegistered, _: AsyncSession) -> None:
        heard.append(str(event.user_id))

    events: EventBus = lifespan_state["events"]
    events.subscribe_before_commit(UserRegistered, listen)
    answer = await anonymous_client.post(USERS, json=account())
    assert heard == [answer.json()["id"]]


async def test_an_account_that_was_not_committed_is_not_logged(
    anonymous_client: httpx2.AsyncClient, lifespan_state: dict[str, Any]
) -> None:
    async def fail(*_: Any) -> None:
        raise ConflictError

    events: EventBus = lifespan_state["events"]
    events.subscribe_before_commit(UserRegistered, fail)
    with capture_logs() as logged:
        assert (await anonymous_client.post(USERS, json=account())).status_code == 409
    assert "users.registered" not in [entry["event"] for entry in logged]


async def test_the_password_is_stored_as_a_hash(
    anonymous_client: httpx2.AsyncClient, database: Database
) -> None:
    await anonymous_client.post(USERS, json=account())
    async with database.read_only() as session:
        user = await UserRepository(session).get_by_email(EMAIL)
    assert user is not None
    assert user.password_hash.startswith("$argon2id$")
