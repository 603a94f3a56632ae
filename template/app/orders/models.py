"""The tables `orders` and `order_lines`."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, Enum, ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column, relationship
from uuid_utils.compat import uuid7

from app.core.database import Base


class OrderStatus(StrEnum):
    """Where an order stands; a placed one is confirmed or cancelled, and neither changes again."""

    PLACED = "placed"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


class Order(Base):
    """What one principal ordered.

    A change checks and raises `version`, so that of two concurrent changes one fails with
    `StaleDataError` rather than overwriting the other.
    """

    __tablename__ = "orders"

    # Version 7 ids grow with time: the primary key is the order of the list, newest last.
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    owner_id: Mapped[str] = mapped_column(String(255))
    customer_email: Mapped[str] = mapped_column(String(254))
    status: Mapped[OrderStatus] = mapped_column(
        Enum(
            OrderStatus,
            native_enum=False,
            create_constraint=True,
            name="status",
            length=16,
            values_callable=lambda statuses: [status.value for status in statuses],
        ),
        default=OrderStatus.PLACED,
    )
    total: Mapped[Decimal]
    # Compressed text; deferred because no list or answer shows it.
    receipt: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    version: Mapped[int] = mapped_column()
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]

    # "raise" makes a forgotten eager load fail in tests instead of costing a query per order.
    lines: Mapped[list["OrderLine"]] = relationship(
        lazy="raise",
        order_by="OrderLine.position",
        cascade="all, delete-orphan",
        passive_deletes=True,
    )

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012
    __table_args__ = (
        # Serves the keyset query: one owner's orders by id.
        Index(None, "owner_id", "id"),
        # Serves the sweep for orders that were left behind.
        Index(None, "status", "id"),
        CheckConstraint("total >= 0", name="total_not_negative"),
    )


class OrderLine(Base):
    """A quantity of one article at the price at which it was ordered."""

    __tablename__ = "order_lines"

    order_id: Mapped[UUID] = mapped_column(
        ForeignKey(Order.id, ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sku: Mapped[str] = mapped_column(String(64))
    quantity: Mapped[int]
    unit_price: Mapped[Decimal]

    __table_args__ = (
        CheckConstraint("quantity >= 1", name="quantity_positive"),
        CheckConstraint("unit_price >= 0", name="unit_price_not_negative"),
    )
