"""How SQLite keeps amounts of money: as integers of minor units, because its NUMERIC is a float."""

from decimal import Decimal

from sqlalchemy import BigInteger


def column_type(precision: int, scale: int) -> BigInteger:  # noqa: ARG001
    """The type of a column for amounts: an integer compares, sums and checks like the amount."""
    return BigInteger()


def to_column(amount: Decimal, minor_units: int) -> int:  # noqa: ARG001
    """What the column holds of an amount, which is given in minor units as well."""
    return minor_units


def from_column(value: int, scale: int) -> Decimal:
    """The amount that the column holds."""
    return Decimal(value).scaleb(-scale)
