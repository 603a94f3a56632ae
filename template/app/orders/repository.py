"""Every query on orders."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.core.pagination import PageParams, Slice, fetch_slice
from app.orders.models import Order, OrderLine, OrderStatus

_ROWS = (
    select(func.count() + 1)
    .where(OrderLine.order_id == Order.id)
    .correlate(Order)
    .scalar_subquery()
)


class OrderRepository:
    """The orders of one owner: no query can reach another owner's."""

    def __init__(self, session: AsyncSession, owner_id: str) -> None:
        self._session = session
        self._mine = (
            select(Order).where(Order.owner_id == owner_id).options(selectinload(Order.lines))
        )

    async def get(self, order_id: UUID) -> Order | None:
        """Return the order with its lines, or `None` when this owner has no such order."""
        return await self._session.scalar(self._mine.where(Order.id == order_id))

    async def list_newest(self, page: PageParams) -> Slice[Order]:
        """Return a page of orders with their lines, newest first, in three queries."""
        return await fetch_slice(self._session, self._mine, page, rows=_ROWS)

    async def add(self, order: Order) -> None:
        """Insert a new order and its lines."""
        self._session.add(order)
        await self._session.flush()

    async def save(self) -> None:
        """Write the changes made to orders that were read here.

        Raises:
            StaleDataError: another transaction has changed such an order since.
        """
        await self._session.flush()


class AnyOwnerOrderRepository:
    """Orders of every owner, for work that the service does by itself, without a principal."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get_locked(self, order_id: UUID, *, skip_locked: bool = False) -> Order | None:
        """Return the order without its lines; nobody else changes it until the transaction ends.

        Args:
            order_id: Which order.
            skip_locked: Return `None`, rather than wait, when somebody is changing it right now.
        """
        return await self._session.scalar(
            select(Order).where(Order.id == order_id).with_for_update(skip_locked=skip_locked)
        )

    async def list_placed(
        self, *only: ColumnElement[bool], before: datetime, after_id: UUID | None, limit: int
    ) -> Sequence[Order]:
        """Return orders with their lines that have been placed before then and still are.

        Args:
            only: Further conditions.
            before: When they were placed at the latest.
            after_id: The last order of the page before.
            limit: The size of a page.
        """
        query = (
            select(Order)
            .where(Order.status == OrderStatus.PLACED, Order.created_at < before, *only)
            .options(selectinload(Order.lines))
            .order_by(Order.id)
            .limit(limit)
        )
        if after_id is not None:
            query = query.where(Order.id > after_id)
        return (await self._session.scalars(query)).all()
