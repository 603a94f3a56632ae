"""The tables `order_exports` and `order_export_chunks`."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Enum, ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column
from uuid_utils.compat import uuid7

from app.core.database import Base, partial_unique_index


class ExportStatus(StrEnum):
    """Where an export stands; a failed one becomes ready when its job is repeated."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"


class OrderExport(Base):
    """A file of one principal's orders that a worker makes."""

    __tablename__ = "order_exports"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    owner_id: Mapped[str] = mapped_column(String(255))
    status: Mapped[ExportStatus] = mapped_column(
        Enum(
            ExportStatus,
            native_enum=False,
            create_constraint=True,
            name="status",
            length=16,
            values_callable=lambda statuses: [status.value for status in statuses],
        ),
        default=ExportStatus.PENDING,
    )
    order_count: Mapped[int | None]
    size: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(index=True)
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index(None, "owner_id", "id"),
        # Of one owner's, one is pending at a time.
        partial_unique_index("uq_order_exports_owner_id", "owner_id", where="status = 'pending'"),
    )


class OrderExportChunk(Base):
    """A piece of an export's file, small enough to be read as a whole.

    It knows where the next one begins, so that a worker can go on where another had to stop.
    """

    __tablename__ = "order_export_chunks"

    export_id: Mapped[UUID] = mapped_column(
        ForeignKey(OrderExport.id, ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    order_count: Mapped[int | None]
    last_order_id: Mapped[UUID | None]
