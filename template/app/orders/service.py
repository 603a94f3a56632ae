"""The rules of orders: placing, reading, cancelling and confirming them."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from app.core.conditional import Preconditions, etag
from app.core.errors import PreconditionFailedError
from app.core.events import record
from app.core.pagination import PageParams, Slice
from app.core.principal import Principal
from app.orders.events import OrderCancelled, OrderConfirmed, OrderPlaced, PlacedLine
from app.orders.exceptions import OrderNotCancellableError, OrderNotFoundError
from app.orders.models import Order, OrderLine, OrderStatus
from app.orders.repository import AnyOwnerOrderRepository, OrderRepository
from app.orders.schemas import OrderCreate

logger = structlog.get_logger(__name__)


def order_etag(order: Order) -> str:
    """The entity tag of an order; the version changes whenever anything of it does."""
    return etag(order.id, order.version)


class OrderService:
    """What one principal may do with their own orders.

    It changes and records; the transaction belongs to the caller, who commits it.
    """

    def __init__(self, session: AsyncSession, principal: Principal) -> None:
        self._session = session
        self._principal = principal
        self._orders = OrderRepository(session, principal.id)

    async def place(self, request: OrderCreate) -> Order:
        """Create an order; it is confirmed in the background after the commit."""
        now = datetime.now(UTC)
        order = Order(
            owner_id=self._principal.id,
            customer_email=request.customer_email,
            status=OrderStatus.PLACED,
            lines=[
                OrderLine(position=position, **line.model_dump())
                for position, line in enumerate(request.lines)
            ],
            total=sum(line.quantity * line.unit_price for line in request.lines),
            created_at=now,
            updated_at=now,
        )
        await self._orders.add(order)
        record(self._session, _placed(order))
        return order

    async def get(self, order_id: UUID) -> Order:
        """Return an order with its lines.

        Raises:
            OrderNotFoundError: the principal has no such order.
        """
        order = await self._orders.get(order_id)
        if order is None:
            raise OrderNotFoundError(f"There is no order {order_id}.")
        return order

    async def list_newest(self, page: PageParams) -> Slice[Order]:
        """Return a page of the principal's orders, newest first."""
        return await self._orders.list_newest(page)

    async def cancel(self, order_id: UUID, preconditions: Preconditions) -> Order:
        """Cancel a placed order.

        Raises:
            OrderNotFoundError: the principal has no such order.
            PreconditionFailedError: `If-Match` names another version than the current one.
            OrderNotCancellableError: the order is no longer placed, or another request or the
                confirmation has just changed it.
        """
        order = await self.get(order_id)
        # Before the state: to a client that asks for "only if unchanged", changed is the answer.
        preconditions.require_match(order_etag(order))
        if order.status is not OrderStatus.PLACED:
            raise OrderNotCancellableError(f"The order is already {order.status}.")
        order.status = OrderStatus.CANCELLED
        order.updated_at = datetime.now(UTC)
        try:
            await self._orders.save()
        except StaleDataError:
            # To "*" any version is as good as another.
            if preconditions.if_match is not None and "*" not in preconditions.if_match:
                raise PreconditionFailedError("The order has changed since it was read.") from None
            raise OrderNotCancellableError("The order has just been changed.") from None
        record(self._session, OrderCancelled(order_id=order.id, owner_id=order.owner_id))
        return order


class OrderConfirmation:
    """Confirms placed orders, for whoever owns them."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._orders = AnyOwnerOrderRepository(session)

    async def list_left_behind(
        self, *only: ColumnElement[bool], age: timedelta, after_id: UUID | None, limit: int
    ) -> list[OrderPlaced]:
        """Return again what was placed longer than `age` ago and is still not confirmed.

        Args:
            only: Further conditions on the orders.
            age: How long a confirmation may take before it counts as lost.
            after_id: The last order of the batch before.
            limit: The size of a batch.
        """
        before = datetime.now(UTC) - age
        orders = await self._orders.list_placed(
            *only, before=before, after_id=after_id, limit=limit
        )
        return [_placed(order) for order in orders]

    async def confirm(self, order_id: UUID, receipt: bytes, *, skip_locked: bool = False) -> None:
        """Confirm an order and file its receipt.

        Safe to repeat: an order that is confirmed, cancelled or gone is left as it is. Waits for
        a cancellation that is under way, as nobody is there to be answered with a conflict;
        with `skip_locked` it leaves such an order as well.
        """
        order = await self._orders.get_locked(order_id, skip_locked=skip_locked)
        if order is None or order.status is not OrderStatus.PLACED:
            logger.info("order_left_as_it_is", order_id=str(order_id))
            return
        logger.info("confirming_order", order_id=str(order_id))
        order.status = OrderStatus.CONFIRMED
        order.receipt = receipt
        order.updated_at = datetime.now(UTC)
        record(self._session, OrderConfirmed(order_id=order.id, owner_id=order.owner_id))


def _placed(order: Order) -> OrderPlaced:
    return OrderPlaced(
        order_id=order.id,
        owner_id=order.owner_id,
        lines=tuple(PlacedLine.model_validate(line) for line in order.lines),
        total=order.total,
    )
