"""The rules of exports: requesting, making and fetching them."""

import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.events import Event, record
from app.core.jobs import UnfinishedError
from app.core.pagination import PageParams, Slice
from app.core.principal import Principal
from app.core.threads import offload
from app.orders.exports import csv_file
from app.orders.exports.csv_file import OrderedLine
from app.orders.exports.exceptions import ExportNotFoundError, ExportNotReadyError
from app.orders.exports.models import ExportStatus, OrderExport
from app.orders.exports.repository import (
    KEPT_FOR,
    KEPT_PER_OWNER,
    ExportContentRepository,
    ExportRepository,
)

# Then other jobs have their turn, and a worker that has to end need not wait for long.
_SECONDS_AT_ONCE = 10.0

logger = structlog.get_logger(__name__)


class ExportRequested(Event):
    """Somebody wants a file of their orders."""

    name: ClassVar[str] = "order_export.requested"

    export_id: UUID
    owner_id: str


class ExportService:
    """What one principal may do with their own exports."""

    def __init__(self, session: AsyncSession, principal: Principal) -> None:
        self._session = session
        self._principal = principal
        self._exports = ExportRepository(session, principal.id)

    async def request(self) -> OrderExport:
        """Return the principal's pending export, or create one and delete the oldest.

        A worker makes its file after the commit.
        """
        export = await self._exports.get_pending()
        while export is None:
            # Again only if what another request has just added is ready by now.
            export = await self._create() or await self._exports.get_pending()
        return export

    async def _create(self) -> OrderExport | None:
        export = OrderExport(
            owner_id=self._principal.id,
            status=ExportStatus.PENDING,
            created_at=datetime.now(UTC),
        )
        if not await self._exports.add(export):
            return None
        await self._exports.delete_all_but_newest(KEPT_PER_OWNER)
        record(self._session, ExportRequested(export_id=export.id, owner_id=export.owner_id))
        return export

    async def get(self, export_id: UUID) -> OrderExport:
        """Return an export.

        Raises:
            ExportNotFoundError: the principal has no such export.
        """
        export = await self._exports.get(export_id)
        if export is None:
            raise ExportNotFoundError(f"There is no export {export_id}.")
        return export

    async def list_newest(self, page: PageParams) -> Slice[OrderExport]:
        """Return a page of the principal's exports, newest first."""
        return await self._exports.list_newest(page)

    async def get_ready(self, export_id: UUID) -> OrderExport:
        """Return an export whose file can be read.

        Raises:
            ExportNotFoundError: the principal has no such export.
            ExportNotReadyError: there is no file, or not yet.
        """
        export = await self.get(export_id)
        if export.status is not ExportStatus.READY:
            raise ExportNotReadyError(f"The export is {export.status}.")
        return export


class ExportMaker:
    """Makes the files, for whoever owns them."""

    def __init__(self, database: Database, session: AsyncSession) -> None:
        self._database = database
        self._session = session

    async def make(self, export_id: UUID, owner_id: str) -> None:
        """Write the owner's orders into the export's file, piece by piece.

        Goes on where another run has stopped; what is in the file by then stays as it was.

        Raises:
            UnfinishedError: there is more to write than it may do at once.
        """
        started = time.monotonic()
        while await self._write_piece(export_id, owner_id):
            if time.monotonic() - started > _SECONDS_AT_ONCE:
                raise UnfinishedError
        contents = ExportContentRepository(self._session)
        export = await contents.get_locked(export_id)
        if export is None:
            logger.info("order_export_gone", export_id=str(export_id))
            return
        count, size = await contents.get_totals(export_id)
        export.status = ExportStatus.READY
        export.order_count = count
        export.size = size
        export.finished_at = datetime.now(UTC)
        logger.info("order_export_ready", export_id=str(export_id), orders=count, size=size)

    async def _write_piece(self, export_id: UUID, owner_id: str) -> bool:
        async with self._database.read_only() as session:
            contents = ExportContentRepository(session)
            progress = await contents.get_progress(export_id)
            if progress is None:
                return False
            lines, more = await contents.read_lines(owner_id, progress.last_order_id)
        is_first = progress.position == 0
        if lines or is_first:
            content = await offload(_format, lines, is_first)
            # A short transaction of its own, which survives this run.
            async with self._database.transaction() as session:
                await ExportContentRepository(session).add_chunk(
                    export_id, progress, content, {line[0] for line in lines}
                )
        return more


def _format(lines: Sequence[OrderedLine], is_first: bool) -> bytes:
    head = csv_file.header() if is_first else b""
    return head + csv_file.lines(lines)


async def mark_failed(session: AsyncSession, export_id: UUID) -> None:
    """Tell the owner that the file will not come."""
    export = await ExportContentRepository(session).get_locked(export_id)
    if export is not None:
        export.status = ExportStatus.FAILED
        export.finished_at = datetime.now(UTC)


async def fail_lost(session: AsyncSession, has_job: ColumnElement[bool]) -> None:
    """Mark pending exports as failed that nobody makes, so that their owners can have others.

    Args:
        session: A transaction that can write.
        has_job: The condition for an export to have a job that waits or runs.
    """
    for export_id in await ExportContentRepository(session).fail_pending(only=~has_job):
        logger.warning("order_export_lost", export_id=str(export_id))


async def delete_old(database: Database) -> int:
    """Delete the exports that have been kept long enough; returns how many."""
    moment = datetime.now(UTC) - KEPT_FOR
    deleted = 0
    while True:
        # Short transactions, which hold up nobody who writes.
        async with database.transaction() as session:
            batch = await ExportContentRepository(session).delete_before(moment)
        deleted += batch
        if batch == 0:
            return deleted


async def read_file(database: Database, export_id: UUID) -> AsyncIterator[bytes]:
    """The export's file, piece by piece; no connection is held while the client is slow."""
    position = 0
    while True:
        async with database.read_only() as session:
            chunk = await ExportContentRepository(session).get_chunk(export_id, position)
        if chunk is None:
            return
        yield chunk
        position += 1
