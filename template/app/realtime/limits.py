"""What one client may use of the service, and what all of them may use together."""

from pydantic import Field

from app.core.settings import Section


class RealtimeSettings(Section):
    """The limits of connections; each process counts for itself."""

    REALTIME_MAX_CONNECTIONS: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="How many connections a process holds; further ones are refused with 503.",
    )
    REALTIME_MAX_CONNECTIONS_PER_USER: int = Field(
        default=50,
        ge=1,
        le=1_000_000,
        description="How many of them one user may hold; further ones are refused with 429. "
        "Callers who are not known have the limit of the process alone.",
    )
    REALTIME_MAX_SUBSCRIPTIONS: int = Field(
        default=50, ge=1, le=10_000, description="How many channels a connection may subscribe to."
    )
    REALTIME_MAX_FRAME_BYTES: int = Field(
        default=16_384, ge=256, le=16_777_216, description="The largest frame of a client."
    )
    REALTIME_MESSAGES_PER_SECOND: float = Field(
        default=20,
        gt=0,
        le=100_000,
        description="How many frames a client may send in the long run, pings and parts of a "
        "message included; those of five seconds may come at once.",
    )
    REALTIME_QUEUE_SIZE: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="How many messages may wait for a client that reads slowly.",
    )
    REALTIME_SEND_TIMEOUT_SECONDS: float = Field(
        default=10,
        gt=0,
        le=600,
        description="For how long a client may not take a message before it is closed, and for how "
        "long what has been closed may take to be gone. Keep it below twice the heartbeat, which "
        "ends what reads nothing as well, with 1011 then.",
    )
    REALTIME_HEARTBEAT_SECONDS: float = Field(
        default=20,
        ge=0.1,
        le=3600,
        description="How often a client is pinged, and how long it may take to answer.",
    )
