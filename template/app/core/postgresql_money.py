"""How PostgreSQL keeps amounts of money: as `NUMERIC`, which is exact."""

from decimal import Decimal

from sqlalchemy import Numeric


def column_type(precision: int, scale: int) -> Numeric[Decimal]:
    """The type of a column for amounts of `precision` digits, `scale` of them after the point."""
    return Numeric(precision, scale)


def to_column(amount: Decimal, minor_units: int) -> Decimal:  # noqa: ARG001
    """What the column holds of an amount, which is given in minor units as well."""
    return amount


def from_column(value: Decimal | int, scale: int) -> Decimal:  # noqa: ARG001
    """The amount that the column holds; the sum of no rows may be a whole number."""
    return Decimal(value)
