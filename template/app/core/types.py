"""Column types that lose nothing: points in time in UTC, and exact amounts of money."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, DateTime, Integer, Numeric, TypeDecorator
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeEngine

# The most decimal digits that always fit into SQLite's 64-bit integers.
_MAX_PRECISION = 18


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time; goes in with any UTC offset and always comes back in UTC.

    A naive `datetime` is refused with `ValueError` (inside SQLAlchemy's `StatementError`): whose
    clock it was read from is unknown.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> datetime | None:
        """Translate to UTC for the database."""
        if value is None:
            return None
        if value.utcoffset() is None:
            message = "a datetime needs a time zone: use datetime.now(UTC)"
            raise ValueError(message)
        return value.astimezone(UTC)

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002
    ) -> datetime | None:
        """Give what the database returns its time zone."""
        if value is None:
            return None
        # SQLite stores no offset; what went in was UTC.
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Money(TypeDecorator[Decimal]):
    """An exact amount of money.

    `NUMERIC` where the database has it. SQLite's is a binary float, so there the column is an
    integer of minor units, which compares, sums and checks like the amount itself.

    What cannot be kept exactly is refused (inside SQLAlchemy's `StatementError`) rather than
    rounded: floats, more than `scale` places, too many digits.

    Args:
        precision: The most digits in all, up to 18.
        scale: The digits after the point: 2 for euros, 0 for yen, 3 for dinars.
    """

    impl = Numeric
    cache_ok = True

    def __init__(self, precision: int = 18, scale: int = 2) -> None:
        if not 0 <= scale <= precision <= _MAX_PRECISION:
            message = f"money needs 0 <= scale <= precision <= {_MAX_PRECISION}"
            raise ValueError(message)
        super().__init__(precision, scale)
        self.precision = precision
        self.scale = scale

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column's type."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(BigInteger())
        return dialect.type_descriptor(Numeric(self.precision, self.scale))

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> TypeEngine[Any]:
        """Choose the type of the other side of an expression with an amount."""
        # A factor is a number, not an amount. In minor units only whole ones have exact results.
        if op in (operators.mul, operators.truediv, operators.floordiv, operators.mod):
            if not isinstance(value, int):
                message = "multiply and divide money in Python, where rounding is explicit"
                raise TypeError(message)
            return Integer()
        return self

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | int | None:
        """Check that the amount can be kept exactly; translate to minor units for SQLite."""
        if value is None:
            return None
        units = self._minor_units(value)
        return units if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """Translate back from minor units."""
        if value is None:
            return None
        return Decimal(value).scaleb(-self.scale) if dialect.name == "sqlite" else Decimal(value)

    def _minor_units(self, value: Decimal | int) -> int:
        if isinstance(value, bool) or not isinstance(value, Decimal | int):
            message = f"money is a Decimal, not a {type(value).__name__}"
            raise TypeError(message)
        amount = Decimal(value)
        if not amount.is_finite():
            message = "money is a finite number"
            raise ValueError(message)
        # Whole numbers, because Decimal's own operators would round to the context's precision.
        numerator, denominator = amount.as_integer_ratio()
        minor_units_in_one: int = 10**self.scale
        units, remainder = divmod(numerator * minor_units_in_one, denominator)
        if remainder:
            message = f"money has at most {self.scale} decimal places here; round it first"
            raise ValueError(message)
        if abs(units) >= 10**self.precision:
            message = f"money has at most {self.precision} digits here"
            raise ValueError(message)
        return units
