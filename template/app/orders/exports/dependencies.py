"""What the exports routes ask for."""

from typing import Annotated

from fastapi import Depends

from app.core.database import ReadSessionDep, SessionDep
from app.core.principal import PrincipalDep
from app.orders.exports.service import ExportService


async def get_exports(session: SessionDep, principal: PrincipalDep) -> ExportService:
    """The principal's exports, in the request's transaction."""
    return ExportService(session, principal)


async def get_exports_read_only(session: ReadSessionDep, principal: PrincipalDep) -> ExportService:
    """The principal's exports, for routes that only read."""
    return ExportService(session, principal)


ExportsDep = Annotated[ExportService, Depends(get_exports)]
ExportsReadOnlyDep = Annotated[ExportService, Depends(get_exports_read_only)]
