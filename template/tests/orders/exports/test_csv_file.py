from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest

from app.orders.exports import csv_file
from app.orders.models import OrderStatus


@pytest.mark.parametrize(
    ("sku", "cell"),
    [
        ("A;=1+1", "A;'=1+1"),
        ("A; +1;B", "A;' +1;B"),
        ('A;"=1', """"A;'""=1\""""),
        ("A\t@x", "A\t'@x"),
        ("A\n-1", '"A\n\'-1"'),
        ("A,=1", '"A,\'=1"'),
        ("A;B", "A;B"),
        ("A-1;B=2", "A-1;B=2"),
    ],
)
def test_no_cell_begins_a_formula_wherever_a_spreadsheet_splits(sku: str, cell: str) -> None:
    now = datetime.now(UTC)
    line = (uuid4(), OrderStatus.PLACED, now, "ada@example.com", Decimal(1), sku, 1, Decimal(1))
    assert csv_file.lines([line]).decode().endswith(f",ada@example.com,1.00,{cell},1,1.00\r\n")
