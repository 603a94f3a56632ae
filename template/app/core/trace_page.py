"""A page that shows what requests and their work did, as a waterfall: `/docs/traces`."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from app.core import trace_file
from app.core.conditional import PreconditionsDep, etag
from app.core.documentation import PAGE_TAG, docs_page
from app.core.threads import offload

_PAGE: Final = Path(__file__).with_name("trace_page.html")

router = APIRouter(prefix="/docs/traces", include_in_schema=False)


@router.get("", tags=[PAGE_TAG], summary="Traces")
async def show_page(request: Request) -> HTMLResponse:
    """Answer the page, which asks for what it shows."""
    return docs_page(request, _PAGE)


@router.get("/spans")
async def send_spans(preconditions: PreconditionsDep) -> Response:
    """Answer the spans that are kept, a line of JSON for each; 304 while there are no others."""
    tag, lines = await offload(_read)
    return preconditions.not_modified(tag) or Response(
        lines, media_type="application/x-ndjson", headers={"ETag": tag}
    )


def _read() -> tuple[str, str]:
    try:
        lines = trace_file.FILE.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        lines = ""
    return etag(lines), lines
