"""The bodies of the auth API."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from app.auth.models import RefreshToken
from app.core.schemas import ApiInput, ApiModel


class LoginForm(BaseModel):
    """OAuth2's password form (RFC 6749, section 4.3.2), as Swagger's Authorize button sends it."""

    # Unrecognized parameters must be ignored (RFC 6749, section 3.2).
    model_config = ConfigDict(extra="ignore")

    grant_type: Literal["password"] = "password"
    username: str = Field(max_length=254, description="The account's e-mail address.")
    password: SecretStr = Field(max_length=1024)
    scope: str = Field(
        default="", max_length=254, description="Has no effect: a token has its user's role."
    )


class RefreshRequest(ApiInput):
    """A refresh token, to be exchanged or to be ended with its session."""

    refresh_token: Annotated[SecretStr, Field(min_length=1, max_length=512)]


class TokenPair(ApiModel):
    """What a login or a refresh gives (RFC 6749, section 5.1)."""

    access_token: str = Field(description="For `Authorization: Bearer`.")
    refresh_token: str = Field(description="Good once, for the next pair.")
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
    expires_in: int = Field(description="Seconds for which the access token is accepted.")


class SessionRead(ApiModel):
    """Where somebody is logged in."""

    id: UUID
    user_agent: str | None = Field(description="What the client called itself at its last refresh.")
    created_at: datetime = Field(description="The login.")
    last_used_at: datetime = Field(description="The login or the last refresh.")
    expires_at: datetime = Field(description="When it ends unless it is refreshed before.")
    is_current: bool = Field(description="Whether this request belongs to it.")

    @classmethod
    def of(cls, newest: RefreshToken, current: str) -> "SessionRead":
        """Describe the session of which `newest` is the newest token."""
        milliseconds = newest.family_id.int >> 80
        return cls(
            id=newest.family_id,
            user_agent=newest.user_agent,
            created_at=datetime.fromtimestamp(milliseconds / 1000, UTC),
            last_used_at=newest.issued_at,
            expires_at=newest.expires_at,
            is_current=str(newest.family_id) == current,
        )


class JsonWebKeySet(BaseModel):
    """The public keys that verify access tokens (RFC 7517, section 5)."""

    keys: list[dict[str, str]]
