"""The keys that sign and verify tokens: one that signs, any number that are still accepted."""

import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm
from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode

from app.core.made_up import looks_made_up
from app.core.settings import Section, SettingError, split_list

Algorithm = Literal["HS256", "EdDSA", "RS256"]
PublicKey = Ed25519PublicKey | RSAPublicKey
PrivateKey = Ed25519PrivateKey | RSAPrivateKey

# An HMAC key is as long as the hash at least (RFC 7518, section 3.2).
MIN_SECRET_BYTES = 32
# RFC 7518, section 3.3.
_MIN_RSA_BITS = 2048
_PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)

# Known to nobody: with one that is written here, everybody could make tokens for a service that
# was started without any.
_SECRET_OF_THIS_PROCESS = SecretStr(secrets.token_urlsafe(MIN_SECRET_BYTES))

SecretList = Annotated[list[SecretStr], NoDecode, BeforeValidator(split_list)]


class SigningKeySettings(Section):
    """Which key signs access tokens, and which others are still, or already, accepted.

    To replace a key without logging anybody out: have the new one accepted everywhere, then let it
    sign while the old one is accepted, then drop the old one when its last token has expired.
    """

    SECRET_KEY: SecretStr = Field(
        default=_SECRET_OF_THIS_PROCESS,
        description="Signs tokens with HS256: 32 bytes or more. A new one for each process and "
        "start when it is not set, which production refuses.",
    )
    SECRET_KEYS_ACCEPTED: SecretList = Field(
        default=[], description="Further values of SECRET_KEY whose tokens are accepted."
    )
    JWT_ALGORITHM: Algorithm = Field(
        default="HS256", description="EdDSA or RS256: others can verify tokens with a public key."
    )
    JWT_PRIVATE_KEY: SecretStr | None = Field(
        default=None, description="The PEM that signs with EdDSA or RS256; line breaks or \\n."
    )
    JWT_PRIVATE_KEY_FILE: Path | None = Field(
        default=None, description="The file that holds it, in place of JWT_PRIVATE_KEY."
    )
    JWT_KEYS_ACCEPTED: SecretStr | None = Field(
        default=None, description="PEMs, one after the other, whose tokens are accepted as well."
    )

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        SigningKeys(self)
        return self

    def production_problems(self) -> Iterator[str]:
        yield from super().production_problems()
        if self.JWT_ALGORITHM == "HS256":
            if "SECRET_KEY" not in self.model_fields_set:
                yield "SECRET_KEY: must be set in production; make one with `openssl rand -hex 32`"
            elif looks_made_up(self.SECRET_KEY.get_secret_value()):
                yield "SECRET_KEY: looks made up; make one with `openssl rand -hex 32`"
        # Whoever guesses one of them can make tokens, whatever signs ours.
        if any(looks_made_up(secret.get_secret_value()) for secret in self.SECRET_KEYS_ACCEPTED):
            yield "SECRET_KEYS_ACCEPTED: holds one that looks made up"


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """What verifies the tokens that name `kid`, with this algorithm and no other."""

    kid: str
    algorithm: Algorithm
    key: bytes | PublicKey

    def to_jwk(self) -> dict[str, str] | None:
        """The key as others may read it (RFC 7517); `None` when it is a secret."""
        if isinstance(self.key, bytes):
            return None
        use = {"kid": self.kid, "alg": self.algorithm, "use": "sig"}
        return {**_public_members(self.key), **use}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What new tokens are signed with, and what verifies them."""

    key: bytes | PrivateKey
    verification: VerificationKey


class SigningKeys:
    """Every key of the process, found by the `kid` in a token's header.

    Args:
        settings: Where the keys are.

    Raises:
        SettingError: a key is missing, unreadable, too short or of another algorithm; the message
            names the variable and holds no part of a key.
    """

    def __init__(self, settings: SigningKeySettings) -> None:
        if settings.JWT_ALGORITHM == "HS256":
            self.current = _secret_key("SECRET_KEY", settings.SECRET_KEY)
        else:
            self.current = _private_key(settings)
        accepted = [
            *(
                _secret_key("SECRET_KEYS_ACCEPTED", secret).verification
                for secret in settings.SECRET_KEYS_ACCEPTED
            ),
            *_accepted_pems(settings.JWT_KEYS_ACCEPTED),
        ]
        self._by_kid = {key.kid: key for key in (self.current.verification, *accepted)}

    @property
    def shared_secret(self) -> bytes:
        """The signing key as bytes, to sign more than tokens: all processes have it, nobody else.

        Each use begins what it signs with a name of its own, and so never signs a token.
        """
        key = self.current.key
        if isinstance(key, bytes):
            return key
        return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    @property
    def is_asymmetric(self) -> bool:
        """Whether others can verify tokens without being able to sign any."""
        return not isinstance(self.current.key, bytes)

    def find(self, kid: object) -> VerificationKey | None:
        """Return the accepted key of this id, whatever a token's header holds in its place."""
        return self._by_kid.get(kid) if isinstance(kid, str) else None

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public keys as a JWK Set (RFC 7517, section 5); secrets are left out."""
        jwks = (key.to_jwk() for key in self._by_kid.values())
        return {"keys": [jwk for jwk in jwks if jwk is not None]}


def _secret_key(variable: str, secret: SecretStr) -> SigningKey:
    key = secret.get_secret_value().encode()
    if len(key) < MIN_SECRET_BYTES:
        message = f"{variable}: must have {MIN_SECRET_BYTES} bytes at least"
        raise SettingError(message)
    if _PEM_BLOCK.search(secret.get_secret_value()):
        # Its public half is known to many.
        message = f"{variable}: is a key as PEM; that is for JWT_PRIVATE_KEY"
        raise SettingError(message)
    # Tells nobody more about the key than a signature does.
    kid = sha256(b"kid:" + key).hexdigest()[:16]
    return SigningKey(key, VerificationKey(kid, "HS256", key))


def _private_key(settings: SigningKeySettings) -> SigningKey:
    variable, pem = _private_pem(settings)
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Their messages may quote the input.
        message = f"{variable}: must be a private key as PEM, without a password"
        raise SettingError(message) from None
    if not isinstance(key, Ed25519PrivateKey | RSAPrivateKey):
        message = f"{variable}: must be an Ed25519 or an RSA key"
        raise SettingError(message)
    verification = _public_key(variable, key.public_key())
    if verification.algorithm != settings.JWT_ALGORITHM:
        message = f"{variable}: is a key for {verification.algorithm}, not JWT_ALGORITHM"
        raise SettingError(message)
    return SigningKey(key, verification)


def _private_pem(settings: SigningKeySettings) -> tuple[str, str]:
    given, file = settings.JWT_PRIVATE_KEY, settings.JWT_PRIVATE_KEY_FILE
    if (given is None) is (file is None):
        message = (
            f"JWT_PRIVATE_KEY: {settings.JWT_ALGORITHM} needs this or JWT_PRIVATE_KEY_FILE, one of"
            " them"
        )
        raise SettingError(message)
    if given is not None:
        return "JWT_PRIVATE_KEY", _with_line_breaks(given)
    assert file is not None  # noqa: S101
    try:
        return "JWT_PRIVATE_KEY_FILE", file.read_text("ascii")
    except (OSError, UnicodeError):
        raise SettingError("JWT_PRIVATE_KEY_FILE: cannot be read as a PEM file") from None


def _accepted_pems(pems: SecretStr | None) -> Iterator[VerificationKey]:
    variable = "JWT_KEYS_ACCEPTED"
    text = "" if pems is None else _with_line_breaks(pems)
    if _PEM_BLOCK.sub("", text).strip():
        message = f"{variable}: must hold keys as PEM and nothing else"
        raise SettingError(message)
    for block in _PEM_BLOCK.finditer(text):
        try:
            if "PRIVATE" in block[1]:
                private = load_pem_private_key(block[0].encode(), password=None)
                key: object = private.public_key()
            else:
                key = load_pem_public_key(block[0].encode())
        except (AttributeError, ValueError, TypeError, UnsupportedAlgorithm):
            message = f"{variable}: holds a key that cannot be read"
            raise SettingError(message) from None
        yield _public_key(variable, key)


def _public_key(variable: str, key: object) -> VerificationKey:
    if isinstance(key, Ed25519PublicKey):
        return VerificationKey(_thumbprint(key), "EdDSA", key)
    if not isinstance(key, RSAPublicKey):
        message = f"{variable}: must be an Ed25519 or an RSA key"
        raise SettingError(message)
    if key.key_size < _MIN_RSA_BITS:
        message = f"{variable}: an RSA key must have {_MIN_RSA_BITS} bits at least"
        raise SettingError(message)
    return VerificationKey(_thumbprint(key), "RS256", key)


def _public_members(key: PublicKey) -> dict[str, str]:
    jwk: dict[str, Any]
    if isinstance(key, RSAPublicKey):
        jwk = RSAAlgorithm.to_jwk(key, as_dict=True)
    else:
        jwk = OKPAlgorithm.to_jwk(key, as_dict=True)
    return {name: jwk[name] for name in ("crv", "e", "kty", "n", "x") if name in jwk}


def _thumbprint(key: PublicKey) -> str:
    """The key's own name (RFC 7638): its required members in order, without spaces, hashed."""
    members = ",".join(f'"{name}":"{value}"' for name, value in _public_members(key).items())
    return urlsafe_b64encode(sha256(f"{{{members}}}".encode()).digest()).rstrip(b"=").decode()


def _with_line_breaks(pem: SecretStr) -> str:
    # Environment files and dashboards often hold one line only.
    return pem.get_secret_value().replace("\\n", "\n")
