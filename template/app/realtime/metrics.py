"""The hub's statistics as metrics."""

from dataclasses import asdict

from prometheus_client import Counter, Gauge

from app.realtime.hub import Hub

_CONNECTIONS = Gauge(
    "realtime_connections", "Connections that are open.", multiprocess_mode="livesum"
)
_WAITING = Gauge(
    "realtime_messages_waiting", "Messages that wait for clients.", multiprocess_mode="livesum"
)
_SUMS = {
    "opened": Counter("realtime_connections_opened", "Connections."),
    "events": Counter("realtime_events", "Events that somebody listened to."),
    "deliveries": Counter("realtime_deliveries", "To how many listeners they were handed."),
    "dropped": Counter("realtime_messages_dropped", "Messages that full queues have lost."),
    "too_slow": Counter("realtime_too_slow", "Connections closed as the client did not keep up."),
    "fan_out_seconds": Counter("realtime_fan_out_seconds", "The time that hand-overs took."),
}


class HubMetrics:
    """Passes on what the hub counts."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._counted = dict.fromkeys(_SUMS, 0.0)

    def measure(self) -> None:
        """Set the metrics."""
        found = asdict(self._hub.statistics())
        _CONNECTIONS.set(found["connections"])
        _WAITING.set(found["waiting"])
        for name, metric in _SUMS.items():
            metric.inc(found[name] - self._counted[name])
            self._counted[name] = found[name]
