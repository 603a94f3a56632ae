"""Logging in: what it gives, and that a refusal reveals nothing."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx2
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import update

from app.core.access_tokens import AccessTokens
from app.core.database import Database
from app.core.passwords import Passwords, Verified
from app.users.models import User
from tests.fixtures.application import Connect, MakeApp
from tests.fixtures.authentication import PASSWORD, Account, bearer

LogIn = Callable[..., Awaitable[httpx2.Response]]

TOKEN = "/api/v1/auth/token"
ME = "/api/v1/users/me"


@pytest.fixture
def log_in(anonymous_client: httpx2.AsyncClient) -> LogIn:
    async def send(username: str, password: str = PASSWORD, **more: str) -> httpx2.Response:
        form = {"username": username, "password": password, **more}
        return await anonymous_client.post(TOKEN, data=form)

    return send


async def test_a_login_gives_a_pair_of_tokens(
    anonymous_client: httpx2.AsyncClient, log_in: LogIn, user: Account
) -> None:
    answer = await log_in(user.email)

    pair = answer.json()
    assert answer.status_code == 200
    assert set(pair) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (pair["token_type"], pair["expires_in"]) == ("bearer", 900)
    assert len(pair["refresh_token"]) == 43  # 256 bits
    assert answer.headers["Cache-Control"] == "no-store"
    me = await anonymous_client.get(ME, headers=bearer(pair["access_token"]))
    assert me.json()["id"] == str(user.id)


@pytest.mark.parametrize("spell", [str.upper, lambda email: f" {email}".strip().title()])
async def test_an_address_may_be_spelled_in_any_case(
    log_in: LogIn, user: Account, spell: Callable[[str], str]
) -> None:
    assert (await log_in(spell(user.email))).status_code == 200


async def test_the_form_is_that_of_swagger(log_in: LogIn, user: Account) -> None:
    # What its Authorize button sends beside the two.
    more = {"grant_type": "password", "scope": "admin", "client_id": "x", "client_secret": "y"}

    answer = await log_in(user.email, **more)

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"username": "ada@people.example"},
        {"username": "a" * 255, "password": PASSWORD},
        {"username": "ada@people.example", "password": "x" * 1025},
        {"grant_type": "client_credentials", "username": "a", "password": "b"},
    ],
)
async def test_another_form_is_refused(
    anonymous_client: httpx2.AsyncClient, form: dict[str, str]
) -> None:
    answer = await anonymous_client.post(TOKEN, data=form)

    assert answer.status_code == 422
    assert "x" * 20 not in answer.text


async def test_all_refusals_look_alike(
    log_in: LogIn, user: Account, other_user: Account, database: Database
) -> None:
    async with database.transaction() as session:
        await session.execute(update(User).where(User.id == other_user.id).values(is_active=False))

    answers = [
        await log_in(user.email, "not the password at all"),
        await log_in("nobody@people.example"),
        await log_in("no address"),
        await log_in("\x00"),
        await log_in(other_user.email),
    ]

    bodies = [{**answer.json(), "request_id": ""} for answer in answers]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["WWW-Authenticate"] for answer in answers} == {"Bearer"}
    assert {answer.headers["Content-Type"] for answer in answers} == {"application/problem+json"}
    assert all(body == bodies[0] for body in bodies)


async def test_a_login_of_nobody_computes_a_hash(
    log_in: LogIn, lifespan_state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str | None] = []
    verify = lifespan_state["passwords"].verify

    async def note(password: str, password_hash: str | None, _: str) -> Any:
        verified.append(password_hash)
        return await verify(password, password_hash)

    monkeypatch.setattr(lifespan_state["passwords"], "verify", note)

    await log_in("nobody@people.example")

    assert verified == [None]


async def test_a_hash_with_other_parameters_is_replaced(
    make_app: MakeApp, connect: Connect, user: Account, database: Database
) -> None:
    async with connect(make_app(PASSWORD_HASH_ITERATIONS=2)) as client:
        for _ in range(2):
            form = {"username": user.email, "password": PASSWORD}
            answer = await client.post(TOKEN, data=form)
            assert answer.status_code == 200

    async with database.read_only() as session:
        stored = await session.get_one(User, user.id)
    assert ",t=2," in stored.password_hash
    assert stored.token_epoch == 0


async def test_several_who_log_in_at_once_while_the_hash_is_replaced_all_succeed(
    make_app: MakeApp, connect: Connect, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, waiting, all_verified = Passwords.verify, 0, anyio.Event()

    async def verify_all_first(*arguments: Any) -> Verified:
        nonlocal waiting
        verified = await verify(*arguments)
        waiting += 1
        if waiting == 3:
            all_verified.set()
        await all_verified.wait()
        return verified

    statuses: list[int] = []
    monkeypatch.setattr(Passwords, "verify", verify_all_first)
    async with connect(make_app(PASSWORD_HASH_ITERATIONS=2)) as client:

        async def log_in() -> None:
            form = {"username": user.email, "password": PASSWORD}
            statuses.append((await client.post(TOKEN, data=form)).status_code)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(log_in)
    assert statuses == [200] * 3


async def test_a_hash_that_is_replaced_again_and_again_is_not_waited_for(
    log_in: LogIn,
    user: Account,
    database: Database,
    lifespan_state: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passwords: Passwords = lifespan_state["passwords"]
    verify = passwords.verify

    async def replace_meanwhile(password: str, password_hash: str | None, _: str) -> Verified:
        another = await passwords.hash(PASSWORD)
        async with database.transaction() as session:
            await session.execute(update(User).values(password_hash=another))
        return await verify(password, password_hash)

    monkeypatch.setattr(passwords, "verify", replace_meanwhile)

    assert (await log_in(user.email)).status_code == 401


async def test_half_a_character_is_a_wrong_password(
    anonymous_client: httpx2.AsyncClient, user: Account
) -> None:
    fields = {"username": user.email, "password": f"{PASSWORD}\\ud800"}
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    # An encoding in which a client can write it.
    content_type = "multipart/form-data; boundary=x; charset=raw_unicode_escape"

    answer = await anonymous_client.post(
        TOKEN, content="".join([*parts, "--x--\r\n"]), headers={"Content-Type": content_type}
    )

    assert answer.status_code == 401


async def test_a_password_that_changes_while_it_is_verified_begins_no_session(
    log_in: LogIn,
    user: Account,
    database: Database,
    lifespan_state: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify = lifespan_state["passwords"].verify

    async def change_meanwhile(password: str, password_hash: str | None, _: str) -> Any:
        async with database.transaction() as session:
            await session.execute(update(User).values(password_hash="another"))
        return await verify(password, password_hash)

    monkeypatch.setattr(lifespan_state["passwords"], "verify", change_meanwhile)

    assert (await log_in(user.email)).status_code == 401


async def test_a_token_says_no_more_than_it_must(
    user: Account, lifespan_state: dict[str, Any]
) -> None:
    access_tokens: AccessTokens = lifespan_state["access_tokens"]

    claims = access_tokens.verify(user.tokens.access_token)

    assert claims.subject == str(user.id)
    assert (claims.role, claims.epoch) == ("user", 0)


async def test_logins_are_counted_by_what_came_of_them(
    make_app: MakeApp, connect: Connect, user: Account
) -> None:
    def counted() -> list[float]:
        outcomes = ("succeeded", "failed", "throttled")
        labels = [{"outcome": outcome} for outcome in outcomes]
        return [REGISTRY.get_sample_value("auth_logins_total", each) or 0 for each in labels]

    before = counted()
    async with connect(make_app(LOGIN_FAILURES_PER_ACCOUNT=1)) as client:
        for password in (PASSWORD, "wrong", "wrong"):
            await client.post(TOKEN, data={"username": user.email, "password": password})
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 1]
