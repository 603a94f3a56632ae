"""The bodies of the users API."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from app.core.email import Email
from app.core.passwords import MAX_PASSWORD_LENGTH, MIN_PASSWORD_LENGTH
from app.core.schemas import ApiInput, ApiModel
from app.core.security import Role

AccountEmail = Annotated[Email, AfterValidator(str.lower)]
"""An address that names an account: mail systems tell apart its cases, people do not."""


# They join and part letters in Persian, Hindi and others, and emoji.
_JOINERS = str.maketrans("", "", "\u200c\u200d")


def _presentable(value: str) -> str:
    text = " ".join(value.split())
    visible = text.translate(_JOINERS).strip()
    if not visible or not visible.isprintable():
        raise PydanticCustomError("name", "Input should be a name, in printable characters")
    return text


FullName = Annotated[str, Field(max_length=200), AfterValidator(_presentable)]
"""A name as its owner writes it; runs of spaces become one."""


def _encodable(value: SecretStr) -> SecretStr:
    # JSON can write half a character, which pydantic refuses in `str` and lets through here.
    try:
        value.get_secret_value().encode()
    except UnicodeEncodeError:
        raise PydanticKnownError("string_unicode") from None
    return value


Password = Annotated[SecretStr, Field(max_length=1024), AfterValidator(_encodable)]
"""A password as somebody has typed it, who may have mistyped it."""

NewPassword = Annotated[
    SecretStr,
    Field(min_length=MIN_PASSWORD_LENGTH, max_length=MAX_PASSWORD_LENGTH),
    AfterValidator(_encodable),
]
"""A password to be; whether it is easy to guess is checked later."""


class UserRegister(ApiInput):
    """An account to make."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "email": "ada@example.com",
                    "password": "bernoulli numbers by engine",
                    "full_name": "Ada Lovelace",
                }
            ]
        }
    )

    email: AccountEmail
    password: NewPassword
    full_name: FullName | None = None


class UserUpdate(ApiInput):
    """What users may change about themselves; what is omitted stays."""

    full_name: FullName | None = None


class PasswordChange(ApiInput):
    """A new password, and the proof that its owner asks for it."""

    current_password: Password
    new_password: NewPassword


class AccessUpdate(ApiInput):
    """What an admin may change about a user; what is omitted stays."""

    role: Annotated[Role, Field(strict=False)] | None = None
    is_active: bool | None = None

    @model_validator(mode="after")
    def _refuse_null(self) -> "AccessUpdate":
        for name in self.model_fields_set:
            if getattr(self, name) is None:
                raise PydanticCustomError(
                    "null", "{name} should not be null; omit it to keep it", {"name": name}
                )
        return self


class UserRead(ApiModel):
    """A user, as they see themselves and as admins see them."""

    id: UUID = Field(description="Version 7: newer users have greater ids.")
    email: str = Field(examples=["ada@example.com"])
    full_name: str | None = Field(examples=["Ada Lovelace"])
    role: Role
    is_active: bool
    created_at: datetime
    updated_at: datetime
