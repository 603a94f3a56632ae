"""A service of nothing but the HTTP stack around a test's own routes."""

from typing import Any

import anyio
import httpx2
from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from app.core import deadline
from app.core.errors import install_error_handlers
from app.core.http_stack import HttpSettings, install_http_stack

ORIGIN = "https://shop.example.com"


def build_app(*routers: APIRouter, https_only: bool = False, **settings: Any) -> FastAPI:
    """The routes inside the whole stack; `settings` are those of `HttpSettings`."""
    app = FastAPI()
    for router in routers:
        app.include_router(router)
    install_error_handlers(app)
    install_http_stack(app, HttpSettings(**settings), https_only=https_only)
    return app


def is_due_in(seconds: float) -> None:
    """Set the clock of the current request forward, to so many seconds before its deadline."""
    scope = deadline._current.get()
    assert scope is not None
    scope.deadline = anyio.current_time() + seconds


def client_of(app: ASGIApp, *, address: str = "203.0.113.7") -> httpx2.AsyncClient:
    """A client in this process; an exception that leaves the application fails the test."""
    transport = httpx2.ASGITransport(app=app, client=(address, 1234))
    return httpx2.AsyncClient(transport=transport, base_url="http://api.example.com")
