"""The probes of the platform that runs the service."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from starlette.requests import HTTPConnection

from app.health.schemas import Liveness, Readiness
from app.health.service import HealthService

router = APIRouter(prefix="/health", tags=["health"])


async def get_health(connection: HTTPConnection) -> HealthService:
    """Give the process's health service to a route."""
    health: HealthService = connection.state.health
    return health


HealthDep = Annotated[HealthService, Depends(get_health)]


@router.get("/live")
async def live(response: Response) -> Liveness:
    """Liveness: restart the process when this does not answer. Looks at nothing outside it."""
    response.headers["Cache-Control"] = "no-store"
    return Liveness()


@router.get("/ready", responses={503: {"model": Readiness, "description": "Not ready"}})
async def ready(response: Response, health: HealthDep) -> Readiness:
    """Readiness: send requests here only while this answers 200."""
    response.headers["Cache-Control"] = "no-store"
    readiness = await health.readiness()
    if readiness.status != "ready":
        response.status_code = 503
    return readiness
