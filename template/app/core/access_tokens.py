"""Access tokens: short-lived signed statements of who is asking (RFC 7519, RFC 9068)."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, ClassVar
from uuid import uuid4

import jwt
from pydantic import Field

from app.core.errors import UnauthenticatedError
from app.core.signing_keys import SigningKeys, SigningKeySettings, VerificationKey

# Ours have about 500 characters; what is longer is not even parsed.
MAX_TOKEN_LENGTH = 4096
# Tokens for other uses that the same key may sign one day must not pass for access tokens.
_TYPE = "at+jwt"
_REQUIRED = ["sub", "exp", "iat", "jti", "iss", "aud"]


class TokenSettings(SigningKeySettings):
    """What access tokens say, and for how long."""

    ACCESS_TOKEN_EXPIRE_MINUTES: float = Field(
        default=15, gt=0, le=1440, description="For how long an access token is accepted."
    )
    JWT_ISSUER: str = Field(
        default="app", min_length=1, description="`iss` of tokens: who has issued them."
    )
    JWT_AUDIENCE: str = Field(
        default="app", min_length=1, description="`aud` of tokens: whom they are for."
    )
    JWT_LEEWAY_SECONDS: float = Field(
        default=10, ge=0, le=300, description="How far the clocks of two servers may differ."
    )
    JWT_CACHE_SIZE: int = Field(
        default=2048,
        ge=0,
        le=1_000_000,
        description="How many verified tokens a process remembers, so as not to compute again.",
    )


class InvalidTokenError(UnauthenticatedError):
    """The access token is malformed, expired, revoked, or signed by somebody else.

    The answer does not tell which; `reason` is for the log.
    """

    code: ClassVar[str | None] = "invalid-token"
    title: ClassVar[str | None] = "Token not valid"

    def __init__(self, reason: str) -> None:
        super().__init__(
            "The access token is not valid, or no longer.",
            # RFC 6750, section 3.1.
            headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
        )
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says.

    `epoch` is the subject's at the time of issue: when theirs has grown since, the token is void.
    """

    subject: str
    session_id: str
    token_id: str
    role: str
    epoch: int
    issued_at: datetime
    expires_at: datetime


class AccessTokens:
    """Issues access tokens and verifies them.

    Args:
        settings: What tokens say; must have been validated.
        clock: The time for what is issued, in seconds since 1970 (UTC).
    """

    def __init__(self, settings: TokenSettings, clock: Callable[[], float] = time.time) -> None:
        self.keys = SigningKeys(settings)
        self.lifetime_seconds = round(settings.ACCESS_TOKEN_EXPIRE_MINUTES * 60)
        self._issuer = settings.JWT_ISSUER
        self._audience = settings.JWT_AUDIENCE
        self._leeway = settings.JWT_LEEWAY_SECONDS
        self._clock = clock
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})
        # The least recently used first; under the token's hash, so that a dump holds no token.
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()
        self._cache_size = settings.JWT_CACHE_SIZE

    def issue(self, *, subject: str, session_id: str, role: str, epoch: int) -> str:
        """Sign a token that is accepted for `lifetime_seconds` from now on.

        Args:
            subject: The user's id.
            session_id: The session that asks for it.
            role: The user's role.
            epoch: The user's epoch; raising it voids the token.
        """
        now = int(self._clock())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": subject,
            "sid": session_id,
            "jti": str(uuid4()),
            "role": role,
            "epoch": epoch,
            "iat": now,
            "exp": now + self.lifetime_seconds,
        }
        current = self.keys.current
        return self._jwt.encode(
            claims,
            current.key,
            algorithm=current.verification.algorithm,
            headers={"kid": current.verification.kid, "typ": _TYPE},
        )

    def verify(self, token: str) -> Claims:
        """Return what the token says, if this service said so and it still holds.

        Whether the session and the user still exist is not in the token: ask the database.

        Raises:
            InvalidTokenError: for whatever is wrong with it, and nothing else.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidTokenError("too long")
        digest = sha256(token.encode("utf-8", "replace")).digest()
        claims = self._verified.get(digest)
        if claims is not None and claims.expires_at.timestamp() > time.time():
            self._verified.move_to_end(digest)
            return claims
        claims = self._decode(token)
        self._verified[digest] = claims
        self._verified.move_to_end(digest)
        while len(self._verified) > self._cache_size:
            self._verified.popitem(last=False)
        return claims

    def _decode(self, token: str) -> Claims:
        try:
            key = self._key_of(token)
            payload = self._jwt.decode(
                token,
                key.key,
                # Of this key alone: what the header says could turn a public key into a secret.
                algorithms=[key.algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={"require": _REQUIRED, "strict_aud": True},
            )
            return _claims(payload)
        except jwt.PyJWTError as error:
            raise InvalidTokenError(type(error).__name__) from None
        # Claims that are missing, out of range or of another type: no token may answer 500. A time
        # that is too far away for the platform is an OSError.
        except (ValueError, TypeError, LookupError, ArithmeticError, OSError) as error:
            raise InvalidTokenError(type(error).__name__) from None

    def _key_of(self, token: str) -> VerificationKey:
        header = jwt.get_unverified_header(token)
        if str(header.get("typ")).lower() != _TYPE:
            raise InvalidTokenError("not an access token")
        key = self.keys.find(header.get("kid"))
        if key is None:
            raise InvalidTokenError("unknown key")
        return key


def _claims(payload: dict[str, Any]) -> Claims:
    subject, session_id, token_id, role = (payload[name] for name in ("sub", "sid", "jti", "role"))
    epoch = payload["epoch"]
    if type(epoch) is not int or not all(isinstance(x, str) for x in (subject, session_id, role)):
        raise InvalidTokenError("claims of another type")
    return Claims(
        subject=subject,
        session_id=session_id,
        token_id=token_id,
        role=role,
        epoch=epoch,
        issued_at=datetime.fromtimestamp(payload["iat"], UTC),
        expires_at=datetime.fromtimestamp(payload["exp"], UTC),
    )
