"""The audit trail: security events under fixed names, and nothing secret in them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import update
from structlog.testing import capture_logs

from app.auth import tokens
from app.auth.models import RefreshToken
from app.core.database import Database
from tests.fixtures.application import Connect, MakeApp
from tests.fixtures.authentication import PASSWORD, Account
from tests.fixtures.authentication_log import leaks

AUTH = "/api/v1/auth"


def trail(logged: list[Any]) -> list[tuple[str, str | None]]:
    """The security events: their names, and their reasons where they have one."""
    prefixes = ("auth.", "users.")
    return [(e["event"], e.get("reason")) for e in logged if e["event"].startswith(prefixes)]


async def test_security_events_are_told_by_name(
    anonymous_client: httpx2.AsyncClient, user: Account, database: Database
) -> None:
    async def send(path: str, **more: Any) -> httpx2.Response:
        return await anonymous_client.post(f"{AUTH}/{path}", **more)

    body = {"refresh_token": user.tokens.refresh_token}
    with capture_logs() as logged:
        await send("token", data={"username": user.email, "password": PASSWORD})
        await send("token", data={"username": user.email, "password": "wrong"})
        await send("token", data={"username": "nobody@people.example", "password": "wrong"})
        await send("refresh", json=body)
        await send("refresh", json=body)
        async with database.transaction() as session:
            await session.execute(
                update(RefreshToken)
                .where(RefreshToken.token_hash == tokens.hash_token(body["refresh_token"]))
                .values(used_at=datetime.now(UTC) - timedelta(seconds=11))
            )
        await send("refresh", json=body)
        await send("refresh", json={"refresh_token": "unknown"})
        await anonymous_client.get("/api/v1/users/me", headers=user.headers)

    assert trail(logged) == [
        ("auth.login_succeeded", None),
        ("auth.login_failed", "wrong_password"),
        ("auth.login_failed", "unknown_account"),
        ("auth.refreshed", None),
        ("auth.refreshed_again", None),
        ("auth.refresh_token_reused", None),
        ("auth.session_ended", "token_reused"),
        ("auth.refresh_failed", "unknown_token"),
        ("auth.access_refused", "session is over"),
    ]
    assert leaks(str(logged)) == []
    [known, unknown] = [e["account"] for e in logged if e["event"] == "auth.login_failed"]
    assert known != unknown
    reused = next(entry for entry in logged if entry["event"] == "auth.refresh_token_reused")
    assert reused["log_level"] == "warning"
    assert reused["user_id"] == str(user.id)


async def test_guessing_at_one_account_shows_in_the_trail(
    anonymous_client: httpx2.AsyncClient, user: Account
) -> None:
    with capture_logs() as logged:
        for spelling in (user.email, user.email.upper()) * 3:
            form = {"username": spelling, "password": "wrong"}
            await anonymous_client.post(f"{AUTH}/token", data=form)

    told = [(e["event"], e["account"]) for e in logged if "account" in e]
    assert [event for event, _ in told] == ["auth.login_failed"] * 5 + ["auth.login_throttled"]
    assert len({account for _, account in told}) == 1


@pytest.mark.parametrize(
    ("secret", "name"),
    [
        ("access_token", "an access token"),
        ("refresh_token", "a refresh token or its hash"),
    ],
)
def test_the_watch_over_the_suites_log_sees_tokens(user: Account, secret: str, name: str) -> None:
    assert leaks(f"... token={getattr(user.tokens, secret)} ...") == [name]


def test_the_watch_over_the_suites_log_sees_the_rest(user: Account) -> None:
    token_hash = tokens.hash_token(user.tokens.refresh_token)

    assert leaks(f"hash={token_hash}") == ["a refresh token or its hash"]
    assert leaks("hash=$argon2id$v=19$m=8") == ["a password's hash"]
    assert leaks(user.email) == ["an e-mail address"]
    assert leaks(f"'{PASSWORD}'") == ["a password"]
    assert leaks(f"user {user.id} has logged in") == []


async def test_an_account_has_the_same_name_in_all_processes(
    make_app: MakeApp, connect: Connect
) -> None:
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    names: list[str] = []
    # As each process without a SECRET_KEY makes one up.
    for made_up in "ab":
        app = make_app(JWT_ALGORITHM="EdDSA", JWT_PRIVATE_KEY=pem.decode(), SECRET_KEY=made_up * 32)
        async with connect(app) as client:
            with capture_logs() as logged:
                form = {"username": "nobody@people.example", "password": "wrong"}
                await client.post(f"{AUTH}/token", data=form)
        names += [e["account"] for e in logged if e["event"] == "auth.login_failed"]

    assert len(names) == 2
    assert names[0] == names[1]
