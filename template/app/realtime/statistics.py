"""What the hub measures: for the log, and for whoever reads `hub.statistics()`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """A reading of the hub: what is there now, and sums since the start, which only grow."""

    connections: int
    """Open now."""
    waiting: int
    """Messages that wait for all clients together."""
    deepest_queue: int
    """Messages that wait for the client that is furthest behind."""
    opened: int
    """Connections since the start."""
    events: int
    """Events, of whichever process, that somebody in this one listened to; some of them may be the
    service's own, such as of access that has ended."""
    deliveries: int
    """To how many listeners they were handed, one by one."""
    dropped: int
    """Messages that a full queue lost, on channels that say `drops_oldest`."""
    too_slow: int
    """Connections closed with 1013, and event streams cut: the client did not keep up."""
    fan_out_seconds: float
    """The time that all hand-overs took; the event loop does nothing else meanwhile."""
    longest_fan_out_seconds: float
    """The longest of them."""


@dataclass
class Counters:
    """The sums, as they are counted; `Statistics` says what each is."""

    opened: int = 0
    events: int = 0
    deliveries: int = 0
    dropped: int = 0
    too_slow: int = 0
    fan_out_seconds: float = 0.0
    longest_fan_out_seconds: float = 0.0

    def count_fan_out(self, listeners: int, seconds: float) -> None:
        """Note that one event was handed to so many, and how long that took."""
        self.events += 1
        self.deliveries += listeners
        self.fan_out_seconds += seconds
        self.longest_fan_out_seconds = max(self.longest_fan_out_seconds, seconds)
