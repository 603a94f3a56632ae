"""The service with a slow route and one that asks the database, for a process of its own."""

import anyio
import structlog
from fastapi import APIRouter, FastAPI
from sqlalchemy import text

from app import main
from app.core.database import SessionDep

router = APIRouter(prefix="/api/v1/sample")
logger = structlog.get_logger(__name__)


@router.get("/slow")
async def be_slow(seconds: float) -> str:
    """Answer late."""
    logger.info("asleep")
    await anyio.sleep(seconds)
    return "done"


@router.get("/database")
async def ask_database(session: SessionDep) -> int:
    """Answer with what the database says."""
    return int(await session.scalar(text("SELECT 42")) or 0)


def create_app() -> FastAPI:
    """Build the service as `uvicorn --factory` would, with the routes above."""
    app = main.create_app()
    app.include_router(router)
    return app
