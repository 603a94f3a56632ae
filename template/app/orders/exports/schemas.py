"""The bodies of the exports API."""

from datetime import datetime
from uuid import UUID

from pydantic import Field

from app.core.schemas import ApiModel
from app.orders.exports.models import ExportStatus


class OrderExportRead(ApiModel):
    """An export as its owner sees it."""

    id: UUID
    status: ExportStatus = Field(description="The file can be fetched when it is `ready`.")
    order_count: int | None = Field(description="`null` until it is ready.")
    size: int | None = Field(description="Bytes; `null` until it is ready.")
    created_at: datetime
    finished_at: datetime | None
