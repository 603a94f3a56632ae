"""The service with a route under the API's rate limit, served from processes of its own."""

from fastapi import APIRouter, Depends, FastAPI

from app import main
from app.core.rate_limit import rate_limit

router = APIRouter(prefix="/api/v1/sample", dependencies=[Depends(rate_limit())])


@router.get("/limited")
async def be_limited() -> str:
    """Answer at once."""
    return "done"


def create_app() -> FastAPI:
    """Build the service as `uvicorn --factory` would, with the route above."""
    app = main.create_app()
    app.include_router(router)
    return app
