"""A service of the test's own routes, with the real stack and database around them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from starlette.types import Receive, Scope, Send

from app.core.database import Database
from app.core.errors import install_error_handlers
from app.core.http_stack import install_http_stack
from app.core.rate_limit import MemoryRateLimiter
from app.settings import Settings

ServeRouter = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.fixture
def serve_router(settings: Settings, database: Database) -> ServeRouter:
    """`async with serve_router(router, **settings) as client`, in this process."""

    @asynccontextmanager
    async def serve(router: APIRouter, **overrides: Any) -> AsyncIterator[httpx2.AsyncClient]:
        own = settings.model_copy(update=overrides)
        app = FastAPI()
        app.include_router(router)
        install_error_handlers(app)
        install_http_stack(app, own, https_only=False)
        state = {"settings": own, "database": database, "rate_limiter": MemoryRateLimiter()}

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx2.ASGITransport(app=with_state, client=("203.0.113.7", 1234))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client

    return serve
