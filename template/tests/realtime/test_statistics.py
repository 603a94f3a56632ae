"""What the hub measures and logs; test_backpressure has drops and slow clients."""

from typing import Any, cast

import anyio
import pytest
from prometheus_client import REGISTRY
from starlette.requests import HTTPConnection
from structlog.testing import capture_logs

from app.core.channels import Channel
from app.core.principal import ANONYMOUS
from app.realtime import hub as hub_module
from app.realtime.hub import Hub, Receiver
from app.realtime.limits import RealtimeSettings
from app.realtime.metrics import HubMetrics

NEWS = Channel("news", messages=())
CONNECTION = HTTPConnection({"type": "websocket", "headers": []})


class Reader:
    """A connection for which so many messages wait."""

    principal = ANONYMOUS

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting

    def offer(self, channel: Channel, frame: str) -> None:
        self.waiting += 1

    def check(self, now: float) -> None:
        pass


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub report every hundredth of a second."""
    monkeypatch.setattr(hub_module, "_CHECK_SECONDS", 0.005)
    monkeypatch.setattr(hub_module, "_REPORT_CHECKS", 2)


def enter(hub: Hub, waiting: int) -> Receiver:
    receiver = cast("Receiver", Reader(waiting))
    hub.enter(receiver, CONNECTION)
    return receiver


async def reports(hub: Hub, seconds: float = 0.1) -> list[Any]:
    with capture_logs() as logs, anyio.move_on_after(seconds):
        await hub.watch()
    return [line for line in logs if line["event"] == "realtime_statistics"]


async def test_queues_are_counted_when_asked_and_the_rest_adds_up() -> None:
    hub = Hub(RealtimeSettings(), {})
    for waiting in (3, 5):
        await hub.listen(NEWS, "news", enter(hub, waiting))
    await hub.exit(enter(hub, 9), [])
    hub.deliver("news", "frame")
    hub.deliver("nobody", "frame")
    found = hub.statistics()
    assert (found.connections, found.waiting, found.deepest_queue) == (2, 10, 6)
    assert (found.opened, found.events, found.deliveries) == (3, 1, 2)
    assert 0 < found.longest_fan_out_seconds <= found.fan_out_seconds


@pytest.mark.usefixtures("often")
async def test_the_log_tells_while_somebody_is_connected_and_once_more_of_what_was() -> None:
    hub = Hub(RealtimeSettings(), {"news": NEWS})
    assert await reports(hub) == []
    receiver = enter(hub, 1)

    async def leave() -> None:
        await anyio.sleep(0.1)
        await hub.exit(receiver, [])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
        found = await reports(hub, 0.4)
    assert (found[0]["connections"], found[0]["waiting"], found[0]["opened"]) == (1, 1, 1)
    counted = [line["connections"] for line in found]
    assert len(counted) > 2
    assert counted == [1] * (len(counted) - 1) + [0]


@pytest.mark.usefixtures("often")
async def test_a_process_that_offers_no_channels_reports_nothing() -> None:
    hub = Hub(RealtimeSettings(), {})
    enter(hub, 0)
    assert await reports(hub) == []


async def test_the_metrics_pass_on_what_the_hub_counts() -> None:
    def opened() -> float:
        return REGISTRY.get_sample_value("realtime_connections_opened_total") or 0

    before = opened()
    hub = Hub(RealtimeSettings(), {"news": NEWS})
    metrics = HubMetrics(hub)
    for waiting in (2, 5):
        enter(hub, waiting)
        metrics.measure()
    assert opened() - before == 2
    assert REGISTRY.get_sample_value("realtime_connections") == 2
    assert REGISTRY.get_sample_value("realtime_messages_waiting") == 7
