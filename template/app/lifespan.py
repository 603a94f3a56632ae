"""Every resource of the process: opened in order at start, closed in reverse at exit."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypedDict

import httpx2
from fastapi import FastAPI

from app.api import start_periodic, subscribe
from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.events import EventBus
from app.core.http_client import open_http_client
from app.core.idempotency import purge_expired_keys
from app.core.rate_limit import MemoryRateLimiter, RateLimiter
from app.core.shutdown import drain_on_sigterm
from app.health.service import HealthService
from app.settings import Settings


class State(TypedDict):
    """What each request finds in its `state`; core's dependencies hand the parts out, typed."""

    settings: Settings
    database: Database
    http_client: httpx2.AsyncClient
    rate_limiter: RateLimiter
    background: BackgroundRunner
    events: EventBus
    health: HealthService


def create_lifespan(
    settings: Settings,
) -> Callable[[FastAPI], AbstractAsyncContextManager[State]]:
    """Bind the settings to the lifespan that FastAPI runs around the process's work."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            background = BackgroundRunner(settings)
            events = EventBus(background)
            subscribe(events)

            database = Database(settings, events)
            stack.push_async_callback(database.close)
            http_client = await stack.enter_async_context(open_http_client(settings))
            # Entered last, so that at exit its tasks finish while what they use is still open.
            await stack.enter_async_context(background)

            health = HealthService(settings, {"database": database.ping})
            stack.push_async_callback(health.close)
            stack.enter_context(drain_on_sigterm(settings, health.start_draining))

            background.every(3600, "purge_idempotency_keys", purge_expired_keys(database, settings))
            start_periodic(background, database)
            await database.warn_if_over_budget()
            yield State(
                settings=settings,
                database=database,
                http_client=http_client,
                rate_limiter=MemoryRateLimiter(),
                background=background,
                events=events,
                health=health,
            )

    return lifespan
