import lzma
from decimal import Decimal
from uuid import UUID

from app.orders.events import OrderPlaced, PlacedLine
from app.orders.receipt import render_receipt


def test_a_receipt_names_the_order_its_lines_and_its_total() -> None:
    order = OrderPlaced(
        order_id=UUID("01890a5d-ac96-774b-bcce-b302099a8057"),
        owner_id="ada",
        lines=(
            PlacedLine(sku="TEA-250", quantity=2, unit_price=Decimal("12.5")),
            PlacedLine(sku="MUG-WHITE", quantity=1, unit_price=Decimal("8.90")),
        ),
        total=Decimal("33.9"),
    )

    assert lzma.decompress(render_receipt(order)).decode() == (
        "Order 01890a5d-ac96-774b-bcce-b302099a8057\n"
        "2 x TEA-250 at 12.50 = 25.00\n"
        "1 x MUG-WHITE at 8.90 = 8.90\n"
        "Total 33.90\n"
    )
