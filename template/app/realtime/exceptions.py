"""What can go wrong with a subscription."""

from typing import ClassVar

from app.core.errors import ForbiddenError, NotFoundError


class UnknownChannelError(NotFoundError):
    """There is no such channel."""

    code: ClassVar[str | None] = "unknown-channel"
    title: ClassVar[str | None] = "Unknown channel"


class ChannelForbiddenError(ForbiddenError):
    """There is such a channel, and the principal may not subscribe to it."""

    code: ClassVar[str | None] = "channel-forbidden"
    title: ClassVar[str | None] = "Channel forbidden"
