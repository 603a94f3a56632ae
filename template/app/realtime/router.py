"""The routes of the realtime API: a WebSocket for all channels, a stream for each."""

from typing import Annotated

import structlog
from fastapi import APIRouter, Query, WebSocket

from app.core.http_settings import HttpSettings
from app.core.principal import PrincipalDep
from app.realtime.connection import POLICY_VIOLATION, Connection
from app.realtime.dependencies import HubDep, RealtimeSettingsDep
from app.realtime.event_stream import EventStream, EventStreamResponse
from app.realtime.exceptions import ChannelForbiddenError, UnknownChannelError
from app.realtime.origin import is_allowed_origin

logger = structlog.get_logger(__name__)

router = APIRouter(prefix="/api/v1", tags=["realtime"])


@router.websocket("/ws")
async def open_websocket(
    websocket: WebSocket, principal: PrincipalDep, hub: HubDep, settings: RealtimeSettingsDep
) -> None:
    """Serve a WebSocket; see `app.realtime.schemas` for what is said on it."""
    http_settings: HttpSettings = websocket.state.settings
    hub.admit(principal)
    subprotocol: str | None = websocket.scope["state"].get("subprotocol")
    if not is_allowed_origin(websocket, http_settings.ALLOWED_ORIGINS):
        logger.info("websocket_origin_refused", origin=websocket.headers["origin"][:200])
        # Accepted, so that the page's author is told why: a refusal has no code in browsers.
        await websocket.accept(subprotocol)
        await websocket.close(POLICY_VIOLATION, "the origin is not allowed")
        return
    await Connection(websocket, principal, hub, settings).serve(subprotocol)


# Not in the schema: OpenAPI cannot describe an answer without an end.
@router.get("/events", include_in_schema=False)
async def stream_events(
    channel: Annotated[str, Query(max_length=100)],
    principal: PrincipalDep,
    hub: HubDep,
    settings: RealtimeSettingsDep,
) -> EventStreamResponse:
    """Stream the events of one channel from now on, as Server-Sent Events."""
    found = hub.channels.get(channel)
    if found is None:
        raise UnknownChannelError(f"There is no channel {channel}.")
    if not found.allows(principal):
        raise ChannelForbiddenError("You may not subscribe to this channel.")
    hub.admit(principal)
    return EventStreamResponse(EventStream(found, principal, hub, settings))
