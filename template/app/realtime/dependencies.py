"""What routes ask for to reach the hub."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.realtime.hub import Hub
from app.realtime.limits import RealtimeSettings


async def get_hub(connection: HTTPConnection) -> Hub:
    """Give the process's hub to a route or to a dependency."""
    hub: Hub = connection.state.hub
    return hub


async def get_realtime_settings(connection: HTTPConnection) -> RealtimeSettings:
    """Give the limits of connections to a route."""
    settings: RealtimeSettings = connection.state.settings
    return settings


HubDep = Annotated[Hub, Depends(get_hub)]
RealtimeSettingsDep = Annotated[RealtimeSettings, Depends(get_realtime_settings)]
