"""The pages of development: `/docs`, the frame that all pages below it share, and their policy."""

import base64
import hashlib
import json
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.docs import get_swagger_ui_oauth2_redirect_html, swagger_ui_default_parameters
from fastapi.responses import HTMLResponse
from fastapi.routing import iter_route_contexts
from fastapi.staticfiles import StaticFiles

# A route with this tag is a page: the navigation names it by its summary.
PAGE_TAG: Final = "docs"

_HERE: Final = Path(__file__).parent
_POLICY: Final = (
    "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'none'; "
    "frame-ancestors 'none'; img-src 'self' blob: data:; script-src {script}; style-src {style}"
)

router = APIRouter(prefix="/docs", include_in_schema=False)


def install_documentation(app: FastAPI, *, traces: bool = False) -> None:
    """Serve `/docs` and the files that pages load; nothing at all where there is no schema.

    Args:
        app: The application, with all of its routers.
        traces: Whether `/docs/traces` has something to show.
    """
    if app.openapi_url is None:
        return
    app.include_router(router)
    if traces:
        # Only here: production does not even import it.
        from app.core.trace_page import router as trace_router  # noqa: PLC0415

        app.include_router(trace_router)


def docs_page(request: Request, path: Path, **parts: str) -> HTMLResponse:
    """Answer a page of HTML that loads what it needs from this service, and only that.

    Args:
        request: The request for it.
        path: Its text. `<!-- header -->` becomes the title and the links to all pages; styles that
            they share are in `docs/static/pages.css`. `<script>` and `<style>` without attributes
            are allowed; those with a `src` must be of this service, `style=` has no effect.
        parts: HTML that takes the place of further comments, by the word in them.
    """
    text = path.read_text(encoding="utf-8")
    # Before anything is filled in: what comes with data is never run.
    policy = _content_policy(text)
    for name, part in {"header": _header(request), **parts}.items():
        text = text.replace(f"<!-- {name} -->", part)
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


@router.get("", tags=[PAGE_TAG], summary="API")
async def show_api(request: Request) -> HTMLResponse:
    """Answer Swagger UI, with the parameters that the application gives it."""
    app: FastAPI = request.app
    parameters = {
        **swagger_ui_default_parameters,
        "url": f"{_prefix(request)}{app.openapi_url}",
        # The badge would have another site look at the schema.
        "validatorUrl": None,
        **(app.swagger_ui_parameters or {}),
    }
    text = json.dumps(jsonable_encoder([parameters, app.swagger_ui_init_oauth]))
    # As data in a page, where only this could end it.
    configuration = text.replace("<", "\\u003c")
    page = _HERE / "swagger.html"
    return docs_page(request, page, title=escape(app.title), configuration=configuration)


@router.get("/oauth2-redirect")
async def end_redirect() -> HTMLResponse:
    """Answer the page that an authorization server sends the browser back to."""
    page = get_swagger_ui_oauth2_redirect_html()
    page.headers["Content-Security-Policy"] = _content_policy(bytes(page.body).decode())
    return page


@router.get("/static/{name}")
async def send_file(request: Request, name: str) -> Response:
    """Answer a style sheet of ours, or a file of Swagger UI."""
    return await _files().get_response(name, request.scope)


@cache
def _files() -> StaticFiles:
    # The package is found by its name and not imported.
    return StaticFiles(directory=_HERE / "static", packages=[("fastapi_swagger", "resources")])


def _content_policy(text: str) -> str:
    """Allow what stands in a page by its digests (CSP level 3), so that nothing else is run."""
    allowed = {"script": "'self'", "style": "'self'"}
    for kind, inside in re.findall(r"<(script|style)>(.*?)</\1>", text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        allowed[kind] += f" 'sha256-{digest}'"
    return _POLICY.format_map(allowed)


def _prefix(request: Request) -> str:
    prefix: str = request.scope.get("root_path", "")
    return prefix.rstrip("/")


def _header(request: Request) -> str:
    prefix = _prefix(request)
    here = request.scope["route"].path
    pages = {
        str(route.path): str(route.summary)
        for route in iter_route_contexts(request.app.routes)
        if PAGE_TAG in (getattr(route, "tags", None) or [])
    }
    links = "".join(
        f'<a href="{escape(prefix + path)}"{" aria-current=page" * (path == here)}>'
        f"{escape(name)}</a>"
        for path, name in sorted(pages.items())
    )
    title = escape(request.app.title)
    return f'<header><strong>{title}</strong><nav aria-label="Pages">{links}</nav></header>'
