"""What every request and response body shares: strictness, and money as decimal strings."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_UNKNOWN_FIELDS_REPORTED = 20


class ApiModel(BaseModel):
    """A body that the API answers with; reads from ORM objects as well as from JSON."""

    model_config = ConfigDict(from_attributes=True)


class ApiInput(BaseModel):
    """A body that the API accepts.

    Unknown fields are refused, so that a misspelled optional one cannot pass for an omitted one,
    and no value is coerced: `"1"` and `1.0` are not integers.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_unknown_fields_at_once(cls, value: Any) -> Any:
        # Each would become an error of its own: a body of a megabyte holds 100,000 of them, and
        # reporting those keeps the process from answering anybody else.
        most = len(cls.model_fields) + _UNKNOWN_FIELDS_REPORTED
        forbidden = cls.model_config.get("extra") == "forbid"
        if forbidden and isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError(
                "too_many_fields", "Object should have at most {most} fields", {"most": most}
            )
        return value


@dataclass(frozen=True)
class MoneyString:
    """Annotates a `Decimal` as an amount of money that travels as a decimal string.

    `Annotated[Decimal, MoneyString(8)]` accepts `"0"`, `"12.5"` and `"12.50"` and answers with
    exactly two places. JSON numbers are refused: most clients read and write them as binary
    floats, which cannot hold a cent. So are signs, exponents, `NaN` and `Infinity`.

    Args:
        integer_digits: The most digits before the point.
    """

    integer_digits: int

    @property
    def pattern(self) -> str:
        """The regular expression of the accepted strings, as JSON Schema spells it."""
        return rf"^(0|[1-9][0-9]{{0,{self.integer_digits - 1}}})(\.[0-9]{{1,2}})?$"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                _two_places, return_schema=core_schema.str_schema(), when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        serialized = handler.mode == "serialization"
        return {
            "type": "string",
            "pattern": r"^(0|[1-9][0-9]*)\.[0-9]{2}$" if serialized else self.pattern,
            "examples": ["12.50"],
        }

    def _parse(self, value: object) -> Decimal:
        if isinstance(value, Decimal):
            text = _two_places(value) if value.is_finite() else str(value)
            exact = value.is_finite() and Decimal(text) == value
        else:
            text, exact = value if isinstance(value, str) else "", True
        # fullmatch, because `$` alone would let a trailing newline through.
        if not exact or not re.fullmatch(self.pattern.removesuffix("$"), text):
            raise PydanticCustomError(
                "money_string",
                'Input should be a decimal string such as "12.50", not negative, with at most '
                "{integer_digits} digits before the point and two after it",
                {"integer_digits": self.integer_digits},
            )
        return Decimal(text)


def _two_places(amount: Decimal) -> str:
    return f"{amount:.2f}"
