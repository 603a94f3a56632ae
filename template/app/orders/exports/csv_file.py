"""Orders as CSV (RFC 4180) that is safe to open in a spreadsheet."""

import csv
import io
from collections.abc import Iterable

from app.orders.models import Order

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
_FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def header() -> bytes:
    """The first line."""
    return _lines([_COLUMNS])


def order_lines(order: Order) -> bytes:
    """One line for each line of the order."""
    return _lines(
        (
            str(order.id),
            order.status.value,
            order.created_at.isoformat(),
            order.customer_email,
            f"{order.total:.2f}",
            line.sku,
            str(line.quantity),
            f"{line.unit_price:.2f}",
        )
        for line in order.lines
    )


def _lines(rows: Iterable[tuple[str, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([[_defuse(cell) for cell in row] for row in rows])
    return text.getvalue().encode()


def _defuse(cell: str) -> str:
    # The apostrophe makes it text; spreadsheets do not show it.
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
