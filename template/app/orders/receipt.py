"""The receipt of an order: canonical text, compressed for the archive."""

import lzma

import structlog

from app.orders.events import OrderPlaced

logger = structlog.get_logger(__name__)


def render_receipt(order: OrderPlaced) -> bytes:
    """Write the receipt and compress it (xz).

    Takes about 10 ms of CPU, during which an event loop would answer nobody: call it through
    `app.core.threads.offload`.
    """
    lines = [
        f"{line.quantity} x {line.sku} at {line.unit_price:.2f}"
        f" = {line.quantity * line.unit_price:.2f}"
        for line in order.lines
    ]
    text = "\n".join([f"Order {order.order_id}", *lines, f"Total {order.total:.2f}", ""])
    receipt = lzma.compress(text.encode())
    logger.info("receipt_rendered", order_id=str(order.order_id), size=len(receipt))
    return receipt
