"""Every token that must not pass: 401, a problem, and how to authenticate; never a 500."""

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from sqlalchemy import delete, update

from app.core.access_tokens import AccessTokens
from app.core.database import Database
from app.users.models import User
from tests.fixtures.application import Connect, MakeApp
from tests.fixtures.authentication import SECRET_KEY, Account, Accounts, bearer

ME = "/api/v1/users/me"
WRONG_KEY = "w" * 32


@dataclass(frozen=True)
class Good:
    """A good token, taken apart, to make bad ones of."""

    token: str
    refresh_token: str

    @property
    def header(self) -> dict[str, Any]:
        return jwt.get_unverified_header(self.token)

    @property
    def claims(self) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(self.token, options={"verify_signature": False})
        return claims

    def signed(
        self,
        claims: dict[str, Any] | None = None,
        key: Any = SECRET_KEY,
        algorithm: str | None = "HS256",
        **header: Any,
    ) -> str:
        """Sign it anew: with other claims (`None` leaves one out), key, algorithm or header."""
        changed = {**self.claims, **(claims or {})}
        kept = {name: value for name, value in changed.items() if value is not None}
        head = {name: v for name, v in {**self.header, **header}.items() if v is not None}
        head.pop("alg")
        return jwt.encode(kept, key, algorithm, head)

    def put_together(self, header: Any = None, claims: Any = None, signature: bytes = b"") -> str:
        """Join parts that no library would sign."""
        parts = (header or self.header, claims or self.claims)
        texts = [json.dumps(part).encode() for part in parts]
        return ".".join(
            base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*texts, signature)
        )


def _tampered(good: Good) -> str:
    header, _, signature = good.token.split(".")
    forged = good.put_together(claims={**good.claims, "role": "admin"}).split(".")[1]
    return f"{header}.{forged}.{signature}"


def _rsa() -> Any:
    return generate_private_key(65537, 2048)


NOW = int(time.time())
FORGERIES: dict[str, Callable[[Good], str]] = {
    "alg none, unsigned": lambda good: good.put_together({**good.header, "alg": "none"}),
    "alg none, signed": lambda good: good.put_together(
        {**good.header, "alg": "nOnE"}, signature=b"x" * 32
    ),
    "alg HS512 with the right key": lambda good: good.signed(key=SECRET_KEY * 2, algorithm="HS512"),
    "alg HS384": lambda good: good.signed(key=SECRET_KEY * 2, algorithm="HS384"),
    "alg EdDSA": lambda good: good.signed(key=Ed25519PrivateKey.generate(), algorithm="EdDSA"),
    "alg RS256": lambda good: good.signed(key=_rsa(), algorithm="RS256"),
    "alg missing": lambda good: good.put_together({"kid": good.header["kid"], "typ": "at+jwt"}),
    "alg of another type": lambda good: good.put_together({**good.header, "alg": ["HS256"]}),
    "wrong key": lambda good: good.signed(key=WRONG_KEY),
    "wrong kid": lambda good: good.signed(kid="0123456789abcdef"),
    "kid missing": lambda good: good.signed(kid=None),
    "kid is a path": lambda good: good.signed(kid="../../dev/null"),
    "kid of another type": lambda good: good.put_together({**good.header, "kid": {"a": 1}}),
    "typ of an identity token": lambda good: good.signed(typ="JWT"),
    "typ missing": lambda good: good.put_together(
        {name: v for name, v in good.header.items() if name != "typ"}
    ),
    "unknown critical header": lambda good: good.signed(crit=["exp2"], exp2=1),
    **{
        f"{claim} missing": lambda good, claim=claim: good.signed({claim: None})  # type: ignore[misc]
        for claim in ("iss", "aud", "sub", "exp", "iat", "jti", "sid", "epoch", "role")
    },
    "wrong iss": lambda good: good.signed({"iss": "somebody else"}),
    "wrong aud": lambda good: good.signed({"aud": "somebody else"}),
    "aud is a list that has ours": lambda good: good.signed({"aud": [good.claims["aud"], "x"]}),
    "sub of nobody": lambda good: good.signed({"sub": str(uuid4())}),
    "sub is no id": lambda good: good.signed({"sub": "ada"}),
    "sub is a number": lambda good: good.put_together(claims={**good.claims, "sub": 1}),
    "sid of no session": lambda good: good.signed({"sid": str(uuid4())}),
    "sid is no id": lambda good: good.signed({"sid": "'; DROP TABLE users; --"}),
    "epoch to come": lambda good: good.signed({"epoch": 1}),
    "epoch of another type": lambda good: good.signed({"epoch": "0"}),
    "epoch is true": lambda good: good.signed({"epoch": False}),
    "exp of another type": lambda good: good.signed({"exp": "soon"}),
    "exp is infinite": lambda good: good.signed({"exp": float("inf")}),
    "exp is out of range": lambda good: good.signed({"exp": 10**30}),
    "iat is out of range": lambda good: good.signed({"iat": -(10**30)}),
    "expired": lambda good: good.signed({"exp": NOW - 60, "iat": NOW - 960}),
    "not yet valid": lambda good: good.signed({"nbf": NOW + 600}),
    "issued in the future": lambda good: good.signed({"iat": NOW + 600, "exp": NOW + 900}),
    "tampered payload": _tampered,
    "another's signature": lambda good: good.token[:-10] + "AAAAAAAAAA",
    "truncated": lambda good: good.token[:-1],
    "truncated to two parts": lambda good: good.token.rpartition(".")[0],
    "half of it": lambda good: good.token[: len(good.token) // 2],
    "one part too many": lambda good: f"{good.token}.x",
    "10 kB": lambda good: good.signed({"padding": "x" * 10_000}),
    "10 kB of nothing": lambda good: "x" * 10_000,
    "10 kB of dots": lambda good: "." * 10_000,
    "nested a thousand times": lambda good: (
        base64.urlsafe_b64encode(b"[" * 1500).decode() + ".e30.e30"
    ),
    "a refresh token": lambda good: good.refresh_token,
    "a JSON array": lambda good: good.put_together(claims=[1]),
    "not UTF-8": lambda good: "\xff\xfe",
    "spaces inside": lambda good: good.token.replace(".", " . "),
}


@pytest.fixture
def good(user: Account) -> Good:
    return Good(user.tokens.access_token, user.tokens.refresh_token)


async def ask(client: httpx2.AsyncClient, token: str) -> httpx2.Response:
    value = f"Bearer {token}".encode("latin-1", "replace")
    return await client.get(ME, headers=[(b"Authorization", value)])


def assert_refused(answer: httpx2.Response) -> None:
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    problem = answer.json()
    assert problem["type"] == "urn:problem:invalid-token"
    assert problem["detail"] == "The access token is not valid, or no longer."


async def test_what_the_forgeries_are_made_of_is_good(
    anonymous_client: httpx2.AsyncClient, good: Good
) -> None:
    assert (await ask(anonymous_client, good.token)).status_code == 200
    # So that each refusal below is for the one thing that differs.
    assert (await ask(anonymous_client, good.signed())).status_code == 200


async def test_every_forgery_is_refused_alike(
    anonymous_client: httpx2.AsyncClient, good: Good
) -> None:
    passed = []
    for name, forge in FORGERIES.items():
        answer = await ask(anonymous_client, forge(good))
        try:
            assert_refused(answer)
        except AssertionError as error:
            passed.append(f"{name}: {answer.status_code} {error}")

    assert passed == []


async def test_without_a_token_the_answer_says_how_to_authenticate(
    anonymous_client: httpx2.AsyncClient,
) -> None:
    answer = await anonymous_client.get(ME)

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["type"] == "urn:problem:not-authenticated"


async def test_a_public_key_is_no_secret(
    make_app: MakeApp, connect: Connect, user: Account, database: Database
) -> None:
    """Signed with HS256 and the bytes of the public key, in each form that it has."""
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = private.public_key()
    app = make_app(JWT_ALGORITHM="EdDSA", JWT_PRIVATE_KEY=pem)

    async with connect(app) as client, app.router.lifespan_context(app) as state:
        good = Good((await Accounts(dict(state or {})).add()).tokens.access_token, "")
        assert (await ask(client, good.token)).status_code == 200
        for key in (
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            public.public_bytes(Encoding.Raw, PublicFormat.Raw),
        ):
            signing_input = good.put_together({**good.header, "alg": "HS256"}).rpartition(".")[0]
            signature = base64.urlsafe_b64encode(
                jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
                    signing_input.encode(), key
                )
            )
            forged = f"{signing_input}.{signature.rstrip(b'=').decode()}"
            assert_refused(await ask(client, forged))
        # Nor is a token of the secret that the service does not use.
        assert_refused(await ask(client, user.tokens.access_token))


async def test_the_token_of_a_deactivated_user_is_refused(
    anonymous_client: httpx2.AsyncClient, user: Account, database: Database
) -> None:
    async with database.transaction() as session:
        await session.execute(update(User).where(User.id == user.id).values(is_active=False))

    assert_refused(await ask(anonymous_client, user.tokens.access_token))


async def test_the_token_of_a_deleted_user_is_refused(
    anonymous_client: httpx2.AsyncClient, user: Account, database: Database
) -> None:
    async with database.transaction() as session:
        await session.execute(delete(User).where(User.id == user.id))

    assert_refused(await ask(anonymous_client, user.tokens.access_token))


async def test_a_retired_key_is_accepted_as_long_as_it_is_listed(
    make_app: MakeApp, connect: Connect, user: Account, lifespan_state: dict[str, Any]
) -> None:
    access_tokens: AccessTokens = lifespan_state["access_tokens"]
    assert access_tokens.keys.current.key == SECRET_KEY.encode()
    rotated = {"SECRET_KEY": "the next key kQ9vT2nB7xW4cY8mZ1pL"}

    async with connect(make_app(**rotated, SECRET_KEYS_ACCEPTED=[SECRET_KEY])) as client:
        assert (await client.get(ME, headers=bearer(user.tokens.access_token))).status_code == 200
    async with connect(make_app(**rotated)) as client:
        assert_refused(await ask(client, user.tokens.access_token))
