"""A page to try the channels with in a browser: `/docs/realtime`, not in production."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.core.errors import NotFoundError
from app.core.settings import AppSettings

_PAGE: Final = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

router = APIRouter()


@router.get("/docs/realtime", include_in_schema=False)
async def show_page(request: Request) -> HTMLResponse:
    """Answer the page; like the rest of the documentation it is hidden in production."""
    settings: AppSettings = request.state.settings
    if settings.is_production:
        raise NotFoundError
    return HTMLResponse(_PAGE)
