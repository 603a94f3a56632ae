"""Access tokens: what is issued, and that nothing else is accepted."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.requests import HTTPConnection

from app.core.access_tokens import AccessTokens, InvalidTokenError, TokenSettings
from app.core.signing_keys import PrivateKey

SECRET = "3f9c1d7a" * 8
OTHER_SECRET = "b20e6f58" * 8
PRIVATE_KEY = (
    Ed25519PrivateKey.generate()
    .private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    .decode()
)


def access_tokens(clock: Callable[[], float] = time.time, **settings: Any) -> AccessTokens:
    return AccessTokens(TokenSettings(**{"SECRET_KEY": SECRET, **settings}), clock)


def issue(tokens: AccessTokens) -> str:
    return tokens.issue(subject="u1", session_id="s1", role="user", epoch=3)


@pytest.fixture
def tokens() -> AccessTokens:
    return access_tokens()


@pytest.mark.parametrize(
    "settings", [{}, {"JWT_ALGORITHM": "EdDSA", "JWT_PRIVATE_KEY": PRIVATE_KEY}]
)
def test_what_is_issued_is_accepted(settings: dict[str, Any]) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    claims = access_tokens(**settings).verify(issue(access_tokens(**settings)))
    assert (claims.subject, claims.session_id, claims.role, claims.epoch) == ("u1", "s1", "user", 3)
    assert before <= claims.issued_at <= datetime.now(UTC)
    assert claims.expires_at - claims.issued_at == timedelta(minutes=15)


def test_every_token_has_an_id_of_its_own(tokens: AccessTokens) -> None:
    assert len({tokens.verify(issue(tokens)).token_id for _ in range(10)}) == 10


def test_the_header_names_the_key_and_the_use(tokens: AccessTokens) -> None:
    header = jwt.get_unverified_header(issue(tokens))
    kid = tokens.keys.current.verification.kid
    assert header == {"alg": "HS256", "kid": kid, "typ": "at+jwt"}


def test_tokens_of_a_retired_key_are_accepted_until_it_is_dropped() -> None:
    token = issue(access_tokens(SECRET_KEY=OTHER_SECRET))
    another_secret = access_tokens(SECRET_KEYS_ACCEPTED=OTHER_SECRET)
    a_private_key = access_tokens(
        JWT_ALGORITHM="EdDSA", JWT_PRIVATE_KEY=PRIVATE_KEY, SECRET_KEYS_ACCEPTED=OTHER_SECRET
    )
    for tokens in (another_secret, a_private_key):
        assert tokens.verify(token).subject == "u1"
    with pytest.raises(InvalidTokenError):
        access_tokens().verify(token)


def header_of(tokens: AccessTokens, **changes: Any) -> dict[str, Any]:
    header = {"alg": "HS256", "kid": tokens.keys.current.verification.kid, "typ": "at+jwt"}
    return without_none({**header, **changes})


def payload_of(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    payload = {
        "iss": "app",
        "aud": "app",
        "sub": "u1",
        "sid": "s1",
        "jti": "t1",
        "role": "user",
        "epoch": 3,
        "iat": now,
        "exp": now + 60,
    }
    return without_none({**payload, **changes})


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: Any, payload: Any, key: bytes = SECRET.encode()) -> str:
    """A token with an HMAC that fits, whatever it says."""
    text = f"{segment(header)}.{segment(payload)}"
    return f"{text}.{segment(hmac.digest(key, text.encode(), 'sha256'))}"


def test_a_token_made_by_hand_is_accepted(tokens: AccessTokens) -> None:
    # Otherwise the ones below could be refused for a mistake in how they are made.
    assert tokens.verify(signed(header_of(tokens), payload_of())).subject == "u1"


def tampered(token: str) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{segment(payload_of(role='admin'))}.{signature}"


def with_header(token: str, header: Any) -> str:
    return f"{segment(header)}.{token.partition('.')[2]}"


def flipped(token: str) -> str:
    return f"{token[:-10]}{'A' if token[-10] != 'A' else 'B'}{token[-9:]}"


MALFORMED: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "a dot": lambda _: ".",
    "dots": lambda _: "..",
    "words": lambda _: "not.a.token",
    "not ascii": lambda token: f"{token}ü",
    "a lone surrogate": lambda token: f"{token}\udc00",
    "truncated": lambda token: token[:-5],
    "without its signature": lambda token: f"{token.rpartition('.')[0]}.",
    "two parts": lambda token: token.rpartition(".")[0],
    "four parts": lambda token: f"{token}.{token.rpartition('.')[2]}",
    "tampered payload": tampered,
    "tampered signature": flipped,
    "10 kB": lambda token: token + "A" * 10_000,
    "10 kB of nesting": lambda token: with_header(token, b"[" * 10_000),
    "nesting": lambda token: with_header(token, b"[" * 2500),
    "nested in objects": lambda token: with_header(token, b'{"a":' * 600),
    "a header that is a list": lambda token: with_header(token, []),
    "a refresh token": lambda _: "3q2-7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_token_is_refused(tokens: AccessTokens, kind: str) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.verify(MALFORMED[kind](issue(tokens)))


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "none"},
        {"alg": None},
        {"alg": "HS512"},
        {"alg": "EdDSA"},
        {"alg": ["HS256"]},
        {"kid": None},
        {"kid": "unknown"},
        {"kid": ["unknown"]},
        {"kid": 1},
        {"typ": None},
        {"typ": "JWT"},
        {"typ": 1},
        {"crit": ["exp"]},
        {"b64": False},
    ],
    ids=str,
)
def test_a_header_that_is_not_ours_is_refused(
    tokens: AccessTokens, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.verify(signed(header_of(tokens, **changes), payload_of()))


# In 2096. Not counted from now on: the names of the tests would differ from worker to worker.
LATER = 4_000_000_000
CLAIMS = ["iss", "aud", "sub", "sid", "jti", "role", "epoch", "iat", "exp"]


@pytest.mark.parametrize(
    "changes",
    [
        *({claim: None} for claim in CLAIMS),
        *({claim: ["app"]} for claim in CLAIMS),
        *({claim: {}} for claim in CLAIMS),
        {"iss": "other"},
        {"iss": ""},
        {"aud": "other"},
        {"sub": 1},
        {"epoch": True},
        {"epoch": "3"},
        {"exp": "soon"},
        {"exp": str(LATER)},
        {"exp": 0},
        {"exp": -1},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": 10**300},
        {"iat": float("inf")},
        # The platform's own error for it, which is no ValueError.
        {"iat": -1e18},
        {"iat": LATER},
        {"nbf": LATER},
        {"nbf": "later"},
    ],
    ids=str,
)
def test_claims_that_are_missing_or_wrong_are_refused(
    tokens: AccessTokens, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.verify(signed(header_of(tokens), payload_of(**changes)))


@pytest.mark.parametrize("payload", [[], "text", 1, None, True])
def test_a_payload_that_is_no_object_is_refused(tokens: AccessTokens, payload: object) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.verify(signed(header_of(tokens), payload))


def test_a_token_longer_than_any_of_ours_is_refused_even_if_it_is_signed(
    tokens: AccessTokens,
) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.verify(signed(header_of(tokens), payload_of(padding="A" * 10_000)))


def test_a_key_is_good_for_its_own_algorithm_only(tokens: AccessTokens) -> None:
    header = header_of(tokens, alg="HS512")
    token = jwt.encode(payload_of(), SECRET, algorithm="HS512", headers=header)
    with pytest.raises(InvalidTokenError):
        tokens.verify(token)


def test_another_key_under_our_name_is_refused(tokens: AccessTokens) -> None:
    with pytest.raises(InvalidTokenError):
        tokens.verify(signed(header_of(tokens), payload_of(), OTHER_SECRET.encode()))


def test_a_public_key_is_no_secret() -> None:
    tokens = access_tokens(JWT_ALGORITHM="EdDSA", JWT_PRIVATE_KEY=PRIVATE_KEY)
    private = tokens.keys.current.key
    assert isinstance(private, PrivateKey)
    public = private.public_key()
    raw = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for key in (raw, tokens.keys.jwks()["keys"][0]["x"].encode()):
        with pytest.raises(InvalidTokenError):
            tokens.verify(signed(header_of(tokens), payload_of(), key))


@pytest.mark.parametrize(("seconds_late", "accepted"), [(5, True), (15, False)])
def test_an_expired_token_is_refused_but_for_a_small_leeway(
    seconds_late: int, accepted: bool
) -> None:
    late = access_tokens(lambda: time.time() - 900 - seconds_late, JWT_LEEWAY_SECONDS=10)
    token = issue(late)
    if accepted:
        assert late.verify(token).subject == "u1"
        return
    with pytest.raises(InvalidTokenError):
        late.verify(token)


def test_a_remembered_token_is_looked_at_again_once_it_has_expired(
    tokens: AccessTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issue(tokens)
    remembered = tokens.verify(token)
    assert tokens.verify(token) is remembered
    late = time.time() + tokens.lifetime_seconds
    # The clock by which it looks at a token again stays as it is.
    monkeypatch.setattr(time, "time", lambda: late)
    assert tokens.verify(token) is not remembered


def test_what_is_remembered_is_bounded_and_holds_no_token() -> None:
    tokens = access_tokens(JWT_CACHE_SIZE=2)
    issued = [issue(tokens) for _ in range(3)]
    first = tokens.verify(issued[0])
    assert tokens.verify(issued[0]) is first
    for token in issued[1:]:
        tokens.verify(token)
    assert len(tokens._verified) == 2
    assert tokens.verify(issued[0]) is not first
    assert not any(token in repr(tokens._verified) for token in issued)


def test_a_refusal_says_how_to_authenticate_and_not_what_is_wrong(tokens: AccessTokens) -> None:
    with pytest.raises(InvalidTokenError) as refused:
        tokens.verify(signed(header_of(tokens), payload_of(iss="other")))
    response = refused.value.to_response(HTTPConnection({"type": "http", "path": "/"}).scope)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert b"ssuer" not in response.body
    assert refused.value.reason == "InvalidIssuerError"
