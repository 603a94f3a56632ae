"""The HTTP interface of orders."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Response

from app.core.conditional import PreconditionsDep
from app.core.errors import responses
from app.core.idempotency import IdempotencyDep
from app.core.pagination import Page, PageParamsDep
from app.orders.dependencies import OrdersDep, OrdersReadOnlyDep
from app.orders.models import Order
from app.orders.schemas import OrderCreate, OrderRead
from app.orders.service import order_etag

router = APIRouter(
    prefix="/api/v1/orders",
    tags=["orders"],
    responses=responses(422, 429),
    # As many lines as an order may have, with every character of them escaped.
    max_body_size=65_536,
)

OrderId = Annotated[UUID, Path(description="The order's `id`.")]

_ETAG: dict[str, Any] = {
    "ETag": {"description": "The order's version.", "schema": {"type": "string"}}
}
_LOCATION: dict[str, Any] = {
    "Location": {"description": "The order's path.", "schema": {"type": "string"}}
}


@router.post(
    "",
    summary="Place an order",
    status_code=201,
    response_model=OrderRead,
    responses={201: {"headers": _LOCATION | _ETAG}, **responses(409)},
)
async def place_order(
    body: OrderCreate, orders: OrdersDep, idempotency: IdempotencyDep
) -> Response:
    """Place an order; it is confirmed in the background.

    Send an `Idempotency-Key` to be able to repeat the request safely: the same key and body
    answer the first result again, the same key with another body is refused with 422.
    """

    async def place() -> Response:
        order = await orders.place(body)
        location = f"{router.prefix}/{order.id}"
        return _answer(order, status_code=201, headers={"Location": location})

    return await idempotency.run(place)


@router.get("", summary="List orders")
async def list_orders(orders: OrdersReadOnlyDep, page: PageParamsDep) -> Page[OrderRead]:
    """List your orders, newest first."""
    return Page[OrderRead].model_validate(await orders.list_newest(page))


@router.get(
    "/{order_id}",
    summary="Get an order",
    response_model=OrderRead,
    responses={
        200: {"headers": _ETAG},
        304: {"description": "The order still is what `If-None-Match` names."},
        **responses(404),
    },
)
async def get_order(
    order_id: OrderId, orders: OrdersReadOnlyDep, preconditions: PreconditionsDep
) -> Response:
    """Get one of your orders, with its `ETag`."""
    order = await orders.get(order_id)
    return preconditions.not_modified(order_etag(order)) or _answer(order)


@router.post(
    "/{order_id}/cancel",
    summary="Cancel an order",
    response_model=OrderRead,
    responses={200: {"headers": _ETAG}, **responses(404, 409, 412)},
)
async def cancel_order(
    order_id: OrderId, orders: OrdersDep, preconditions: PreconditionsDep
) -> Response:
    """Cancel an order that is not confirmed yet.

    With `If-Match` it is cancelled only if it has not changed since it had that `ETag`.
    """
    return _answer(await orders.cancel(order_id, preconditions))


def _answer(
    order: Order, *, status_code: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(
        OrderRead.model_validate(order).model_dump_json(),
        status_code,
        {"ETag": order_etag(order), **(headers or {})},
        media_type="application/json",
    )
