"""A page to try the channels with in a browser: `/docs/realtime`, not in production."""

from html import escape
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.core.documentation import PAGE_TAG, docs_page
from app.core.errors import NotFoundError
from app.core.settings import AppSettings
from app.realtime.dependencies import HubDep

_PAGE: Final = Path(__file__).with_name("page.html")

router = APIRouter()


@router.get("/docs/realtime", include_in_schema=False, tags=[PAGE_TAG], summary="Channels")
async def show_page(request: Request, hub: HubDep) -> HTMLResponse:
    """Answer the page; like the rest of the documentation it is hidden in production."""
    settings: AppSettings = request.state.settings
    if settings.is_production:
        raise NotFoundError
    options = "".join(f'<option value="{escape(name)}">' for name in sorted(hub.channels))
    return docs_page(request, _PAGE, channels=options)
