"""The public keys: for everybody when there are any."""

from typing import Any

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fastapi import FastAPI

from tests.fixtures.application import MakeApp, open_client
from tests.fixtures.authentication import Accounts

JWKS = "/.well-known/jwks.json"


def asymmetric_app(make_app: MakeApp) -> FastAPI:
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    return make_app(JWT_ALGORITHM="EdDSA", JWT_PRIVATE_KEY=pem.decode())


async def test_a_secret_is_not_published(anonymous_client: httpx2.AsyncClient) -> None:
    assert (await anonymous_client.get(JWKS)).status_code == 404


async def test_others_can_verify_tokens_with_what_is_published(make_app: MakeApp) -> None:
    app = asymmetric_app(make_app)
    async with app.router.lifespan_context(app) as state, open_client(app, state) as client:
        account = await Accounts(dict(state or {})).add()

        answer = await client.get(JWKS)

    keys = jwt.PyJWKSet.from_dict(answer.json())
    token = account.tokens.access_token
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(
        token, key.key, algorithms=["EdDSA"], options={"verify_aud": False}
    )
    assert claims["sub"] == str(account.id)
    assert "d" not in answer.json()["keys"][0]
    assert answer.headers["Cache-Control"] == "public, max-age=300"
