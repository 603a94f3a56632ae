"""`GET /orders/{id}` from the cache; mounted before the router, whose route it stands in for."""

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.cache import CacheDep, CacheSpace
from app.core.conditional import PreconditionsDep
from app.core.events import EventBus, record
from app.core.principal import PrincipalDep
from app.orders.dependencies import OrdersReadOnlyDep
from app.orders.events import OrderCancelled, OrderConfirmed
from app.orders.router import OrderId
from app.orders.router import router as orders_router
from app.orders.schemas import OrderRead
from app.orders.service import order_etag

# The route that it stands in for documents both.
router = APIRouter(prefix=orders_router.prefix, include_in_schema=False)


class CachedOrder(BaseModel):
    """What answers a request without the database."""

    etag: str
    body: OrderRead


CACHED_ORDERS = CacheSpace("orders", CachedOrder)


@router.get("/{order_id}")
async def get_cached_order(
    order_id: OrderId,
    orders: OrdersReadOnlyDep,
    principal: PrincipalDep,
    cache: CacheDep,
    preconditions: PreconditionsDep,
) -> Response:
    """Get one of your orders, with its `ETag`."""

    async def load() -> CachedOrder:
        order = await orders.get(order_id)
        return CachedOrder(etag=order_etag(order), body=OrderRead.model_validate(order))

    cached = await cache.get_or_load(CACHED_ORDERS, principal.id, order_id, load)
    response = preconditions.not_modified(cached.etag) or Response(
        cached.body.model_dump_json(), headers={"ETag": cached.etag}, media_type="application/json"
    )
    # A browser keeps it for this user alone, and asks before it uses it again.
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["Vary"] = "Authorization"
    return response


async def _forget(event: OrderCancelled | OrderConfirmed, session: AsyncSession) -> None:
    record(session, CACHED_ORDERS.changed(event.owner_id, event.order_id))


def subscribe(events: EventBus) -> None:
    """Have an order forgotten when it changes: whatever else changes one belongs in here."""
    events.subscribe_before_commit(OrderCancelled, _forget)
    events.subscribe_before_commit(OrderConfirmed, _forget)
