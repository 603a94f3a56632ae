"""E-mail addresses in bodies: checked for their form, written one way."""

from typing import Annotated

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError


def normalize_email(value: str) -> str:
    """Write an address one way: its domain in lower case, its characters composed.

    Raises:
        PydanticCustomError: it is not an address.
    """
    # pydantic's EmailStr would also accept `Ada <ada@example.com>` and drop the name.
    try:
        return validate_email(value, check_deliverability=False).normalized
    except EmailNotValidError as error:
        raise PydanticCustomError(
            "email", "Input should be an e-mail address: {reason}", {"reason": str(error)}
        ) from None


Email = Annotated[
    str,
    Field(max_length=254, json_schema_extra={"format": "email"}),
    AfterValidator(normalize_email),
]
"""A syntactically valid address, its domain in lower case; the domain is not looked up."""
