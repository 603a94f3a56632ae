"""The HTTP interface of exports: ask for one, look how far it is, fetch its file."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from app.core.database import Database
from app.core.errors import responses
from app.core.idempotency import IdempotencyDep
from app.core.pagination import Page, PageParamsDep
from app.core.rate_limit import caller
from app.orders.exports import csv_file
from app.orders.exports.dependencies import ExportsDep, ExportsReadOnlyDep
from app.orders.exports.download import Download
from app.orders.exports.models import ExportStatus
from app.orders.exports.schemas import OrderExportRead
from app.orders.exports.service import read_file

router = APIRouter(prefix="/api/v1/orders/exports", tags=["exports"], responses=responses(422, 429))

ExportId = Annotated[UUID, Path(description="The export's `id`.")]

_RETRY_AFTER_SECONDS = "1"
_LOCATION: dict[str, Any] = {
    "Location": {"description": "Where to look how far it is.", "schema": {"type": "string"}}
}


@router.post(
    "",
    summary="Export your orders",
    status_code=202,
    response_model=OrderExportRead,
    responses={202: {"headers": _LOCATION}, **responses(409)},
)
async def request_export(exports: ExportsDep, idempotency: IdempotencyDep) -> Response:
    """Have a CSV file of all your orders made in the background.

    While one is pending, that one is the answer. Your ten newest exports are kept, for seven days.
    """

    async def accept() -> Response:
        export = await exports.request()
        return Response(
            OrderExportRead.model_validate(export).model_dump_json(),
            202,
            {"Location": f"{router.prefix}/{export.id}", "Retry-After": _RETRY_AFTER_SECONDS},
            media_type="application/json",
        )

    return await idempotency.run(accept)


@router.get("", summary="List exports")
async def list_exports(exports: ExportsReadOnlyDep, page: PageParamsDep) -> Page[OrderExportRead]:
    """List your exports of the last days, newest first."""
    return Page[OrderExportRead].model_validate(await exports.list_newest(page))


@router.get("/{export_id}", summary="Get an export", responses=responses(404))
async def get_export(
    export_id: ExportId, exports: ExportsReadOnlyDep, response: Response
) -> OrderExportRead:
    """Look how far an export is; ask again after `Retry-After` seconds while it is pending."""
    export = await exports.get(export_id)
    if export.status is ExportStatus.PENDING:
        response.headers["Retry-After"] = _RETRY_AFTER_SECONDS
    return OrderExportRead.model_validate(export)


@router.get(
    "/{export_id}/file",
    summary="Fetch an export's file",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
        **responses(404, 409),
    },
)
async def fetch_export(
    export_id: ExportId, exports: ExportsReadOnlyDep, request: Request
) -> Download:
    """Fetch the CSV file: one line for each line of an order, oldest order first.

    You can fetch a few files at the same time; a further one is refused with 429.
    Cells that a spreadsheet would execute as a formula start with an apostrophe.
    """
    export = await exports.get_ready(export_id)
    # The request's session is closed before the first piece is sent.
    database: Database = request.state.database
    return Download(
        read_file(database, export.id),
        caller(request),
        media_type=csv_file.MEDIA_TYPE,
        headers={
            # Personal data; it does not stay in any cache.
            "Cache-Control": "private, no-store",
            "Content-Disposition": f'attachment; filename="orders-{export.id}.csv"',
            "Content-Length": str(export.size),
        },
    )
