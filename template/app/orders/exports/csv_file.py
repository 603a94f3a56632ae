"""Orders as CSV (RFC 4180) that is safe to open in a spreadsheet."""

import csv
import io
import re
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from app.orders.models import OrderStatus

MEDIA_TYPE = "text/csv; charset=utf-8; header=present"

_COLUMNS = (
    "order_id",
    "status",
    "created_at",
    "customer_email",
    "order_total",
    "sku",
    "quantity",
    "unit_price",
)
# A cell that starts so is executed: https://owasp.org/www-community/attacks/CSV_Injection
# Spreadsheets may also split at what is no comma, whatever the quotes, and start a cell there.
_FORMULA_STARTS = re.compile(
    r"""(?:^|(?<=[,;|\t\r\n]))(?=["'\s]*[=+\-@\uff1d\uff0b\uff0d\uff20])|^(?=[\t\r\n])"""
)


OrderedLine = tuple[UUID, OrderStatus, datetime, str, Decimal, str, int, Decimal]
"""A line of an order, after what the lines of an order have in common; as in the header."""


def header() -> bytes:
    """The first line."""
    return _lines([_COLUMNS])


def lines(ordered: Iterable[OrderedLine]) -> bytes:
    """One line for each line of an order."""
    return _lines(
        (
            str(order_id),
            status.value,
            created_at.isoformat(),
            email,
            f"{total:.2f}",
            sku,
            str(quantity),
            f"{unit_price:.2f}",
        )
        for order_id, status, created_at, email, total, sku, quantity, unit_price in ordered
    )


def _lines(rows: Iterable[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([[_defuse(cell) for cell in row] for row in rows])
    return text.getvalue().encode()


def _defuse(cell: str) -> str:
    # The apostrophe makes it text; spreadsheets do not show it.
    return _FORMULA_STARTS.sub("'", cell)
