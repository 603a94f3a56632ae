"""Every query on exports."""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.core.database import is_unique_violation
from app.core.pagination import PageParams, Slice, fetch_slice
from app.orders.exports.models import ExportStatus, OrderExport, OrderExportChunk
from app.orders.models import Order

_ORDERS_AT_ONCE = 500
# Their files, of many megabytes perhaps, are deleted with them.
_EXPORTS_AT_ONCE = 20


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

    async def read_orders(self, owner_id: str) -> AsyncIterator[Order]:
        """Go through all orders of an owner with their lines, oldest first, a few at a time."""
        mine = select(Order).where(Order.owner_id == owner_id).options(selectinload(Order.lines))
        mine = mine.order_by(Order.id).limit(_ORDERS_AT_ONCE)
        page = (await self._session.scalars(mine)).all()
        while page:
            for order in page:
                yield order
            last = page[-1].id
            # Otherwise the session would remember every order that it has ever read.
            self._session.expunge_all()
            page = (await self._session.scalars(mine.where(Order.id > last))).all()

    async def replace_content(self, export_id: UUID, chunks: Iterable[bytes]) -> None:
        """Store the file, in place of one that an earlier run may have left."""
        await self._session.execute(
            delete(OrderExportChunk).where(OrderExportChunk.export_id == export_id)
        )
        for position, content in enumerate(chunks):
            chunk = OrderExportChunk(export_id=export_id, position=position, content=content)
            self._session.add(chunk)
            await self._session.flush()
            self._session.expunge(chunk)

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
