"""Every query on exports."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import is_unique_violation
from app.core.pagination import PageParams, Slice, fetch_slice
from app.orders.exports.csv_file import OrderedLine
from app.orders.exports.models import ExportStatus, OrderExport, OrderExportChunk
from app.orders.models import Order, OrderLine

# Lines rather than orders, which differ in size; more than any order has.
_LINES_AT_ONCE = 500
# Their files, of many megabytes perhaps, are deleted with them.
_EXPORTS_AT_ONCE = 20


class Progress(NamedTuple):
    """Where the next piece of a file begins."""

    position: int
    last_order_id: UUID | None


class ExportRepository:
    """The exports of one owner: no query can reach another owner's."""

    def __init__(self, session: AsyncSession, owner_id: str) -> None:
        self._session = session
        self._mine = select(OrderExport).where(OrderExport.owner_id == owner_id)

    async def get(self, export_id: UUID) -> OrderExport | None:
        """Return the export, or `None` when this owner has no such export."""
        return await self._session.scalar(self._mine.where(OrderExport.id == export_id))

    async def list_newest(self, page: PageParams) -> Slice[OrderExport]:
        """Return a page of exports, newest first."""
        return await fetch_slice(self._session, self._mine, page)

    async def get_pending(self) -> OrderExport | None:
        """Return the one that is not made yet, if there is one."""
        return await self._session.scalar(
            self._mine.where(OrderExport.status == ExportStatus.PENDING)
        )

    async def add(self, export: OrderExport) -> bool:
        """Insert a pending export; `False` when there is one already, which others see by now."""
        try:
            # The savepoint keeps the transaction usable.
            async with self._session.begin_nested():
                self._session.add(export)
        except IntegrityError as error:
            if is_unique_violation(error, "uq_order_exports_owner_id"):
                return False
            raise
        return True

    async def delete_all_but_newest(self, count: int) -> None:
        """Delete the older exports with their files."""
        older = self._mine.with_only_columns(OrderExport.id).order_by(OrderExport.id.desc())
        await self._session.execute(
            delete(OrderExport)
            .where(OrderExport.id.in_(older.offset(count)))
            .execution_options(synchronize_session=False)
        )


class ExportContentRepository:
    """What exports are made of, for work that the service does by itself, without a principal."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get_locked(self, export_id: UUID) -> OrderExport | None:
        """Return an export, locked until the transaction ends."""
        return await self._session.scalar(
            select(OrderExport).where(OrderExport.id == export_id).with_for_update()
        )

    async def get_progress(self, export_id: UUID) -> Progress | None:
        """Return where the next piece of a file begins; `None` when it is whole, or has gone."""
        row = (
            await self._session.execute(
                select(
                    func.coalesce(OrderExportChunk.position + 1, 0), OrderExportChunk.last_order_id
                )
                .select_from(OrderExport)
                .outerjoin(OrderExportChunk)
                .where(OrderExport.id == export_id, OrderExport.status != ExportStatus.READY)
                .order_by(OrderExportChunk.position.desc())
                .limit(1)
            )
        ).one_or_none()
        return None if row is None else Progress(*row)

    async def read_lines(
        self, owner_id: str, after: UUID | None
    ) -> tuple[Sequence[OrderedLine], bool]:
        """Return the lines of some of an owner's orders, oldest first, and whether there are more.

        Rows rather than objects, which cost much more.
        """
        mine = (
            select(
                Order.id,
                Order.status,
                Order.created_at,
                Order.customer_email,
                Order.total,
                OrderLine.sku,
                OrderLine.quantity,
                OrderLine.unit_price,
            )
            .join(OrderLine)
            .where(Order.owner_id == owner_id)
            .order_by(Order.id, OrderLine.position)
            .limit(_LINES_AT_ONCE)
        )
        if after is not None:
            mine = mine.where(Order.id > after)
        rows = (await self._session.execute(mine)).all()
        if len(rows) < _LINES_AT_ONCE:
            return rows, False
        # The last order may have more lines.
        return [row for row in rows if row[0] != rows[-1][0]], True

    async def add_chunk(
        self, export_id: UUID, progress: Progress, content: bytes, order_ids: AbstractSet[UUID]
    ) -> None:
        """Store the next piece, unless another worker has stored it, or the export has gone."""
        await self.get_locked(export_id)
        if await self.get_progress(export_id) != progress:
            return
        chunk = OrderExportChunk(
            export_id=export_id,
            position=progress.position,
            content=content,
            order_count=len(order_ids),
            last_order_id=max(order_ids, default=progress.last_order_id),
        )
        self._session.add(chunk)
        await self._session.flush()

    async def get_totals(self, export_id: UUID) -> tuple[int, int]:
        """Return how many orders and bytes the pieces of a file have."""
        orders, size = (
            await self._session.execute(
                select(
                    func.coalesce(func.sum(OrderExportChunk.order_count), 0),
                    func.coalesce(func.sum(func.length(OrderExportChunk.content)), 0),
                ).where(OrderExportChunk.export_id == export_id)
            )
        ).one()
        return int(orders), int(size)

    async def get_chunk(self, export_id: UUID, position: int) -> bytes | None:
        """Return a piece of the file; `None` after its last."""
        return await self._session.scalar(
            select(OrderExportChunk.content).where(
                OrderExportChunk.export_id == export_id, OrderExportChunk.position == position
            )
        )

    async def fail_pending(self, only: ColumnElement[bool]) -> Sequence[UUID]:
        """Mark the pending exports that meet the condition as failed; returns their ids."""
        failed = await self._session.scalars(
            update(OrderExport)
            .where(OrderExport.status == ExportStatus.PENDING, only)
            .values(status=ExportStatus.FAILED, finished_at=datetime.now(UTC))
            .returning(OrderExport.id)
            .execution_options(synchronize_session=False)
        )
        return failed.all()

    async def delete_before(self, moment: datetime) -> int:
        """Delete some of the exports that are older; returns how many."""
        old = (
            select(OrderExport.id)
            .where(OrderExport.created_at < moment)
            .limit(_EXPORTS_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        gone = await self._session.scalars(
            delete(OrderExport)
            .where(OrderExport.id.in_(old))
            .returning(OrderExport.id)
            .execution_options(synchronize_session=False)
        )
        return len(gone.all())


KEPT_FOR = timedelta(days=7)
"""How long a file can be fetched."""

KEPT_PER_OWNER = 10
"""How many exports an owner has at most; older ones are deleted when another is requested."""
