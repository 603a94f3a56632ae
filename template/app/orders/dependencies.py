"""What the orders routes ask for."""

from typing import Annotated

from fastapi import Depends

from app.core.database import ReadSessionDep, SessionDep
from app.core.principal import PrincipalDep
from app.orders.service import OrderService


async def get_orders(session: SessionDep, principal: PrincipalDep) -> OrderService:
    """The principal's orders, in the request's transaction."""
    return OrderService(session, principal)


async def get_orders_read_only(session: ReadSessionDep, principal: PrincipalDep) -> OrderService:
    """The principal's orders, for routes that only read."""
    return OrderService(session, principal)


OrdersDep = Annotated[OrderService, Depends(get_orders)]
OrdersReadOnlyDep = Annotated[OrderService, Depends(get_orders_read_only)]
