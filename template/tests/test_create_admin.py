"""The first admin, from the command line."""

import io
import sys
from collections.abc import Awaitable, Callable

import anyio
import httpx2
import pytest

from app import create_admin
from tests.fixtures.authentication import EMAIL_DOMAIN, PASSWORD

EMAIL = f"ada@{EMAIL_DOMAIN}"
Create = Callable[..., Awaitable[str | int | None]]


class Terminal(io.StringIO):
    """An input at which somebody sits."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def create(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Create:
    """Runs the command with an input; what it ends with."""
    monkeypatch.setenv("DATABASE_URL", database_url)

    def call(arguments: tuple[str, ...], source: io.StringIO) -> str | int | None:
        monkeypatch.setattr(sys, "stdin", source)
        try:
            create_admin.main(list(arguments))
        except SystemExit as end:
            return end.code
        return 0

    async def run(
        *arguments: str, password: str = PASSWORD, source: type[io.StringIO] = io.StringIO
    ) -> str | int | None:
        # It runs an event loop of its own.
        return await anyio.to_thread.run_sync(call, arguments, source(f"{password}\n"))

    return run


async def test_the_admin_can_log_in_and_manage_accounts(
    anonymous_client: httpx2.AsyncClient, create: Create
) -> None:
    assert await create(f"ADA@{EMAIL_DOMAIN}", "--name", "Ada Lovelace") == 0
    form = {"username": EMAIL, "password": PASSWORD}
    tokens = (await anonymous_client.post("/api/v1/auth/token", data=form)).json()
    anonymous_client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    [account] = (await anonymous_client.get("/api/v1/users")).json()["items"]
    assert (account["email"], account["full_name"]) == (EMAIL, "Ada Lovelace")
    assert account["role"] == "admin"


async def test_an_account_that_is_there_is_left_alone(
    anonymous_client: httpx2.AsyncClient, create: Create
) -> None:
    # Somebody may have taken the admin's address, hoping for this.
    body = {"email": EMAIL, "password": PASSWORD}
    assert (await anonymous_client.post("/api/v1/users", json=body)).status_code == 201
    assert await create(EMAIL) == "There is an account with this address."
    form = {"username": EMAIL, "password": PASSWORD}
    tokens = (await anonymous_client.post("/api/v1/auth/token", data=form)).json()
    anonymous_client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    assert (await anonymous_client.get("/api/v1/users")).status_code == 403


def test_a_closed_input_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # What Python makes of a descriptor that is closed.
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit, match="read from the input, which is closed"):
        create_admin.main([EMAIL])


@pytest.mark.parametrize(
    ("email", "password", "reason"),
    [
        ("ada", PASSWORD, "email: Input should be an e-mail address"),
        (EMAIL, "short", "password: "),
        # What a byte that is no UTF-8 becomes in the input.
        (EMAIL, f"{PASSWORD}\udcff", "password: "),
        (EMAIL, "password1234", "is too easy to guess"),
    ],
)
async def test_what_cannot_be_an_account_is_refused(
    create: Create, email: str, password: str, reason: str
) -> None:
    end = str(await create(email, password=password))
    assert reason in end
    assert password not in end


async def test_an_environment_that_cannot_be_used_is_named(
    create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "short")
    assert "SECRET_KEY: must have 32 bytes" in str(await create(EMAIL))


@pytest.mark.parametrize(("again", "end"), [(PASSWORD, 0), ("another", "not the same")])
async def test_in_a_terminal_the_password_is_asked_for_twice(
    create: Create, monkeypatch: pytest.MonkeyPatch, again: str, end: object
) -> None:
    typed = {"Password: ": PASSWORD, "Again: ": again}
    monkeypatch.setattr(create_admin, "getpass", typed.__getitem__)
    assert str(end) in str(await create(EMAIL, password="ignored", source=Terminal))


async def test_a_database_that_is_away_is_said_in_one_line(
    create: Create, monkeypatch: pytest.MonkeyPatch, unreachable_database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", unreachable_database_url)
    end = str(await create(EMAIL))
    assert end.startswith("The database cannot be used: ")
    assert "\n" not in end
