"""The service with routes that go wrong, for tests that serve it from a process of its own."""

from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from app import main
from tests.core.stack import is_due_in

router = APIRouter(prefix="/api/v1/misbehaving")
logger = structlog.get_logger(__name__)


@router.get("/broken")
async def break_down() -> None:
    """Fail after binding something to the log context."""
    structlog.contextvars.bind_contextvars(leak="leaked")
    message = "password=hunter2"
    raise ValueError(message)


@router.get("/caller")
async def show_caller(request: Request) -> str | None:
    """Who is asking."""
    return request.client.host if request.client else None


@router.get("/cut")
async def cut() -> StreamingResponse:
    """Fail halfway through the answer."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        message = "the disk is gone"
        raise OSError(message)

    return StreamingResponse(chunks())


@router.get("/endless")
async def send_for_ever() -> StreamingResponse:
    """Send pieces without an end."""

    async def chunks() -> AsyncIterator[bytes]:
        while True:
            yield bytes(50_000)
            # Once the client is gone, sending waits for nothing.
            await anyio.lowlevel.checkpoint()

    return StreamingResponse(chunks())


@router.get("/large")
async def send_much() -> Response:
    """Send at once more than the system buffers of a connection."""
    return Response(bytes(10_000_000))


@router.post("/upload")
async def upload(request: Request) -> int:
    """Read the whole body."""
    return len(await request.body())


@router.post("/wait")
async def wait_for_a_body(request: Request) -> int:
    """Say that the request has arrived, and read the whole body."""
    logger.info("waiting")
    return len(await request.body())


@router.post("/overdue")
async def be_overdue(request: Request) -> int:
    """Read the whole body, for which there is next to no time."""
    is_due_in(0.05)
    return len(await request.body())


@router.get("/sleep")
async def sleep() -> None:
    """Never come back."""
    logger.info("asleep")
    await anyio.sleep(3600)


def create_app() -> FastAPI:
    """Build the service as `uvicorn --factory` would, with the routes above."""
    app = main.create_app()
    app.include_router(router)
    return app
