"""The keys of tokens: what is refused, what signs, what is still accepted, what others may see."""

from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import SecretStr, ValidationError

from app.core.signing_keys import SigningKeys, SigningKeySettings
from app.settings import InvalidSettingsError, load_settings

SECRET = "f2c8a1d4906b7e35" * 4
OTHER_SECRET = "05d9b7e3f18c6a42" * 4
# The example of RFC 7638, section 3.1.
RFC_MODULUS = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWK"
    "RXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMic"
    "AtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3"
    "XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
)
RFC_THUMBPRINT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def keys(**settings: Any) -> SigningKeys:
    return SigningKeys(SigningKeySettings(**settings))


def private_pem(key: Any, password: bytes | None = None) -> str:
    encryption: Any = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    return pem.decode()


def public_pem(key: Any) -> str:
    pem: bytes = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


@pytest.fixture(scope="module")
def ed25519_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_a_secret_signs_by_default_and_nothing_of_it_is_public() -> None:
    found = keys(SECRET_KEY=SECRET)
    assert found.current.verification.algorithm == "HS256"
    assert not found.is_asymmetric
    assert found.jwks() == {"keys": []}
    assert SECRET not in found.current.verification.kid


def test_without_a_secret_a_process_makes_one_up() -> None:
    first, second = keys(), keys()
    assert first.current == second.current
    assert len(first.current.key if isinstance(first.current.key, bytes) else b"") >= 32


def test_each_accepted_key_is_found_by_its_own_id_and_no_other() -> None:
    before = keys(SECRET_KEY=OTHER_SECRET).current.verification
    now = keys(SECRET_KEY=SECRET, SECRET_KEYS_ACCEPTED=OTHER_SECRET)
    assert now.find(before.kid) == before
    assert now.find(now.current.verification.kid) == now.current.verification
    for unknown in ("", "nobody's", None, 1, ["kid"], {"kid": 1}):
        assert now.find(unknown) is None
    assert keys(SECRET_KEY=SECRET).find(before.kid) is None


@pytest.mark.parametrize("kind", ["EdDSA", "RS256"])
def test_the_public_half_of_a_private_key_is_published_and_nothing_else(
    kind: str, ed25519_key: ed25519.Ed25519PrivateKey, rsa_key: rsa.RSAPrivateKey
) -> None:
    pem = private_pem(ed25519_key if kind == "EdDSA" else rsa_key)
    found = keys(JWT_ALGORITHM=kind, JWT_PRIVATE_KEY=pem)
    assert found.is_asymmetric
    [jwk] = found.jwks()["keys"]
    public = {"EdDSA": {"kty", "crv", "x"}, "RS256": {"kty", "n", "e"}}[kind]
    assert jwk.keys() == public | {"kid", "alg", "use"}
    assert (jwk["alg"], jwk["kid"]) == (kind, found.current.verification.kid)


def test_a_public_key_is_named_by_its_thumbprint() -> None:
    modulus = int.from_bytes(urlsafe_b64decode(f"{RFC_MODULUS}=="), "big")
    pem = public_pem(rsa.RSAPublicNumbers(65537, modulus).public_key())
    found = keys(SECRET_KEY=SECRET, JWT_KEYS_ACCEPTED=pem)
    assert [jwk["kid"] for jwk in found.jwks()["keys"]] == [RFC_THUMBPRINT]
    accepted = found.find(RFC_THUMBPRINT)
    assert accepted is not None
    assert accepted.algorithm == "RS256"


def test_several_keys_are_accepted_beside_the_one_that_signs(
    ed25519_key: ed25519.Ed25519PrivateKey, rsa_key: rsa.RSAPrivateKey
) -> None:
    accepted = private_pem(ed25519_key) + public_pem(rsa_key.public_key())
    signing = private_pem(ed25519.Ed25519PrivateKey.generate())
    found = keys(JWT_ALGORITHM="EdDSA", JWT_PRIVATE_KEY=signing, JWT_KEYS_ACCEPTED=accepted)
    published = found.jwks()["keys"]
    assert [jwk["alg"] for jwk in published] == ["EdDSA", "EdDSA", "RS256"]
    assert all("d" not in jwk for jwk in published)


def test_a_key_may_come_in_one_line_or_in_a_file(
    ed25519_key: ed25519.Ed25519PrivateKey, tmp_path: Path
) -> None:
    pem = private_pem(ed25519_key)
    (tmp_path / "key.pem").write_text(pem)
    in_one_line = keys(JWT_ALGORITHM="EdDSA", JWT_PRIVATE_KEY=pem.replace("\n", "\\n"))
    in_a_file = keys(JWT_ALGORITHM="EdDSA", JWT_PRIVATE_KEY_FILE=tmp_path / "key.pem")
    assert in_one_line.current.verification.kid == in_a_file.current.verification.kid


def _refused_settings() -> dict[str, dict[str, Any]]:
    key = ed25519.Ed25519PrivateKey.generate()
    pem = private_pem(key)
    on_curve = private_pem(ec.generate_private_key(ec.SECP256R1()))
    eddsa = {"JWT_ALGORITHM": "EdDSA"}
    return {
        "SECRET_KEY: must have 32 bytes": {"SECRET_KEY": "s3cr3t" * 5},
        "SECRET_KEYS_ACCEPTED: must have 32 bytes": {"SECRET_KEYS_ACCEPTED": f"{SECRET},s3cr3t"},
        "SECRET_KEY: is a key as PEM": {"SECRET_KEY": pem},
        "JWT_PRIVATE_KEY: EdDSA needs this": eddsa,
        "or JWT_PRIVATE_KEY_FILE, one of them": {
            **eddsa,
            "JWT_PRIVATE_KEY": pem,
            "JWT_PRIVATE_KEY_FILE": "key.pem",
        },
        "JWT_PRIVATE_KEY: must be a private key": {**eddsa, "JWT_PRIVATE_KEY": "s3cr3t"},
        "without a password": {**eddsa, "JWT_PRIVATE_KEY": private_pem(key, b"s3cr3t")},
        "JWT_PRIVATE_KEY: must be an Ed25519 or": {**eddsa, "JWT_PRIVATE_KEY": on_curve},
        "is a key for EdDSA, not": {"JWT_ALGORITHM": "RS256", "JWT_PRIVATE_KEY": pem},
        "JWT_PRIVATE_KEY_FILE: cannot be read": {**eddsa, "JWT_PRIVATE_KEY_FILE": "s3cr3t.pem"},
        "JWT_PRIVATE_KEY: an RSA key must have 2048": {
            "JWT_ALGORITHM": "RS256",
            "JWT_PRIVATE_KEY": private_pem(rsa.generate_private_key(65537, 1024)),
        },
        "JWT_KEYS_ACCEPTED: must hold keys as PEM": {"JWT_KEYS_ACCEPTED": f"{pem}\ns3cr3t"},
        "JWT_KEYS_ACCEPTED: holds a key that cannot be read": {
            "JWT_KEYS_ACCEPTED": "-----BEGIN PUBLIC KEY-----\ns3cr3t\n-----END PUBLIC KEY-----"
        },
        "JWT_KEYS_ACCEPTED: must be an Ed25519 or": {"JWT_KEYS_ACCEPTED": on_curve},
    }


REFUSED = _refused_settings()


@pytest.mark.parametrize("reason", REFUSED)
def test_a_key_that_cannot_be_used_is_refused_and_not_shown(reason: str) -> None:
    with pytest.raises(ValidationError) as refused:
        keys(**REFUSED[reason])
    [problem] = refused.value.errors(include_input=False)
    assert reason in problem["msg"]
    assert "s3cr3t" not in problem["msg"].replace("s3cr3t.pem", "")


def test_the_start_is_refused_with_the_name_of_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_KEY", "s3cr3t")
    with pytest.raises(InvalidSettingsError) as refused:
        load_settings()
    assert str(refused.value) == "SECRET_KEY: must have 32 bytes at least"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "SECRET_KEY: must be set"),
        ({"SECRET_KEY": "a1b2" * 16}, "SECRET_KEY: looks made up"),
        ({"SECRET_KEY": "please-change-me-before-production-0123"}, "SECRET_KEY: looks made up"),
        ({"SECRET_KEY": "my-service-production-secret-key-1"}, "SECRET_KEY: looks made up"),
        ({"SECRET_KEY": f"Insecure{SECRET}"}, "SECRET_KEY: looks made up"),
        (
            {"SECRET_KEY": SECRET, "SECRET_KEYS_ACCEPTED": f"{SECRET},{'a1b2' * 16}"},
            "SECRET_KEYS_ACCEPTED: holds one that looks made up",
        ),
    ],
)
def test_production_refuses_a_secret_that_others_could_know(
    settings: dict[str, Any], expected: str
) -> None:
    [problem] = SigningKeySettings(**settings).production_problems()
    assert problem.startswith(expected)


def test_production_needs_no_secret_when_a_private_key_signs(
    ed25519_key: ed25519.Ed25519PrivateKey,
) -> None:
    pem = private_pem(ed25519_key)
    settings = SigningKeySettings(JWT_ALGORITHM="EdDSA", JWT_PRIVATE_KEY=pem)
    assert not list(settings.production_problems())
    settings = settings.model_copy(update={"SECRET_KEYS_ACCEPTED": [SecretStr("a1b2" * 16)]})
    assert len(list(settings.production_problems())) == 1
    assert not list(SigningKeySettings(SECRET_KEY=SECRET).production_problems())


@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA", "RS256"])
def test_the_processes_of_a_service_share_a_secret_whatever_signs_tokens(
    algorithm: str, ed25519_key: ed25519.Ed25519PrivateKey, rsa_key: rsa.RSAPrivateKey
) -> None:
    settings = {
        "HS256": {"SECRET_KEY": SECRET},
        "EdDSA": {"JWT_PRIVATE_KEY": private_pem(ed25519_key)},
        "RS256": {"JWT_PRIVATE_KEY": private_pem(rsa_key)},
    }[algorithm]
    # As each process without a SECRET_KEY makes one up.
    one, other = ({"SECRET_KEY": made_up * 32, **settings} for made_up in "ab")
    shared = keys(JWT_ALGORITHM=algorithm, **one).shared_secret
    assert keys(JWT_ALGORITHM=algorithm, **other).shared_secret == shared
    assert len(shared) >= 32
