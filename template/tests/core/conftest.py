"""Routes of a test's own inside the real application."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter

from tests.fixtures.application import Connect, MakeApp

ServeRouter = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]


@pytest.fixture
def serve_router(make_app: MakeApp, connect: Connect) -> ServeRouter:
    """`async with serve_router(router, RATE_LIMIT_REQUESTS=2) as client`."""

    @asynccontextmanager
    async def serve(router: APIRouter, **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
        app = make_app(**settings)
        app.include_router(router)
        async with connect(app) as client:
            yield client

    return serve
