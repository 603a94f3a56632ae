"""The hub of one process: nobody's failure is anybody else's."""

from typing import Any, cast

import anyio
import pytest
from starlette.requests import HTTPConnection
from structlog.testing import capture_logs

from app.core.channels import Channel
from app.core.errors import TooManyRequestsError
from app.core.principal import ANONYMOUS, Principal
from app.realtime.hub import Hub, NoBroker, Receiver
from app.realtime.limits import RealtimeSettings

NEWS = Channel("news", messages=())
TICKER = Channel("ticker", messages=())
CONNECTION = HTTPConnection({"type": "websocket", "headers": []})


class Hearer:
    """Notes what it hears."""

    principal = ANONYMOUS
    waiting = 0

    def __init__(self, error: Exception | None = None) -> None:
        self.heard: list[str] = []
        self._error = error

    def offer(self, channel: Channel, frame: str) -> None:
        if self._error is not None:
            raise self._error
        self.heard.append(frame)

    def check(self, now: float) -> None:
        if self._error is not None:
            raise self._error
        self.heard.append("check")


class SlowBroker(NoBroker):
    """Takes its time to forget."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    async def unsubscribe(self, topic: str) -> None:
        await anyio.sleep(0.05)
        self.forgotten.append(topic)


@pytest.fixture
def hub() -> Hub:
    return Hub(RealtimeSettings(), {})


async def test_who_fails_to_listen_keeps_nobody_from_hearing(hub: Hub) -> None:
    hearer = Hearer()
    for listener in (Hearer(ValueError("a frame of another release")), hearer):
        await hub.listen(NEWS, "news", listener)
    with capture_logs() as logs:
        hub.deliver("news", "frame")
    assert hearer.heard == ["frame"]
    assert [line["event"] for line in logs] == ["realtime_listener_failed"]


async def test_whose_check_fails_keeps_nobody_from_being_checked(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.realtime.hub._CHECK_SECONDS", 0.01)
    hearer = Hearer()
    for receiver in (Hearer(ValueError("of another release of the server")), hearer):
        hub.enter(cast("Receiver", receiver), CONNECTION)
    with capture_logs() as logs, anyio.move_on_after(0.2):
        await hub.watch()
    assert len(hearer.heard) > 1
    assert {line["event"] for line in logs} == {"realtime_check_failed"}


async def test_a_connection_that_is_cancelled_while_it_leaves_leaves_everything(hub: Hub) -> None:
    broker = hub.broker = SlowBroker()
    receiver: Any = Hearer()
    hub.enter(cast("Receiver", receiver), CONNECTION)
    for channel in (NEWS, TICKER):
        await hub.listen(channel, channel.name, receiver)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await hub.exit(receiver, ["news", "ticker"])
    for topic in ("news", "ticker"):
        hub.deliver(topic, "frame")
    assert receiver.heard == []
    assert broker.forgotten == ["news", "ticker"]


async def test_who_has_left_makes_room_for_their_next_connection() -> None:
    hub = Hub(RealtimeSettings(REALTIME_MAX_CONNECTIONS_PER_USER=1), {})
    receiver = Hearer()
    receiver.principal = Principal("ada")
    for _ in range(2):
        hub.admit(receiver.principal)
        hub.enter(cast("Receiver", receiver), CONNECTION)
        with pytest.raises(TooManyRequestsError):
            hub.admit(receiver.principal)
        await hub.exit(cast("Receiver", receiver), [])
