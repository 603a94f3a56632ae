"""The service with channels for tests, and a route that publishes on them."""

from types import ModuleType
from typing import ClassVar

from fastapi import APIRouter, FastAPI

from app import feeds
from app.core.channels import Channel, Message
from app.core.database import SessionDep
from app.core.events import EventBus, record
from app.core.principal import Principal
from app.main import create_app as create_service
from app.realtime.dependencies import HubDep
from app.realtime.statistics import Statistics


class Note(Message):
    """Something to be told."""

    name: ClassVar[str] = "note"

    text: str
    number: int = 0


def nobody(_: Principal) -> bool:
    """Whom a forbidden channel is open to."""
    return False


NEWS = Channel("news", messages=(Note,))
TICKER = Channel("ticker", messages=(Note,), drops_oldest=True)
LETTERS = Channel("letters", messages=(Note,), is_private=True)
SECRETS = Channel("secrets", messages=(Note,), allows=nobody)
MANY = [Channel(f"many-{number}", messages=(Note,)) for number in range(10)]

router = APIRouter(prefix="/tests")


@router.post("/publish/{name}")
async def publish(
    hub: HubDep, name: str, times: int = 1, length: int = 1, to: str | None = None
) -> None:
    """Publish numbered notes on a channel."""
    channel = hub.channels[name]
    for number in range(times):
        hub.publish(channel, Note(text="x" * length, number=number), to)


@router.get("/statistics")
async def show_statistics(hub: HubDep) -> Statistics:
    """Answer what the hub measures."""
    return hub.statistics()


@router.post("/commit/{name}")
async def commit(session: SessionDep, name: str, fails: bool = False) -> None:
    """Publish a note by a transaction, which may fail."""
    record(session, feeds.find_channels()[name].publication(Note(text="committed")))
    if fails:
        raise RuntimeError


def feed() -> ModuleType:
    """A feed module, as a domain would have one."""
    module = ModuleType("tests.realtime.feed")
    vars(module).update(
        {channel.name: channel for channel in (NEWS, TICKER, LETTERS, SECRETS, *MANY)}
    )
    module.subscribe = subscribe  # type: ignore[attr-defined]
    return module


def subscribe(_: EventBus) -> None:
    """Nothing happens here by itself."""


def create_app() -> FastAPI:
    """Build the service with these channels beside its own."""
    found = feeds.feed_modules
    feeds.feed_modules = lambda: [*found(), feed()]
    app = create_service()
    app.include_router(router)
    return app
