"""Channels: what is pushed to clients, declared by the domains and published after the commit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, SerializeAsAny

from app.core.events import Event
from app.core.principal import Principal


class Message(BaseModel):
    """The data of one kind of event on a channel; part of the public API, like a response body."""

    model_config = ConfigDict(frozen=True)

    name: ClassVar[str]
    """What clients know the event by, such as `book.lent`."""


def everybody(_: Principal) -> bool:
    """Let everybody subscribe who may open a connection."""
    return True


@dataclass(frozen=True, eq=False)
class Channel:
    """Something to subscribe to. Those in an `app/*/feed.py` are offered to clients.

    Args:
        name: Unique within the service, such as `books`.
        messages: The kinds of events that it carries.
        is_private: Whether a principal hears only of what is published to them.
        drops_oldest: What happens to a client that does not keep up: whether it misses the oldest
            messages of this channel, as befits states that are replaced by later ones, or is
            closed so that it knows.
        allows: Who may subscribe; asked at each subscription.
    """

    name: str
    messages: tuple[type[Message], ...]
    is_private: bool = False
    drops_oldest: bool = False
    allows: Callable[[Principal], bool] = everybody

    def topic(self, principal_id: str) -> str:
        """Where a subscription of this principal listens."""
        if not self.is_private:
            return self.name
        # Quoted, so that no principal's topic can be read as another one's.
        return f"{self.name}:{quote(principal_id, safe='')}"

    def publication(self, message: Message, to: str | None = None) -> "Published":
        """The event that has `message` pushed after the commit; to be recorded.

        Args:
            message: Of one of the channel's kinds.
            to: The id of the principal who hears of it; exactly private channels have one.

        Raises:
            ValueError: it does not belong on this channel.
        """
        if type(message) not in self.messages:
            raise ValueError(f"the channel {self.name} carries no {type(message).__name__}")
        if (to is not None) is not self.is_private:
            raise ValueError(f"exactly private channels have a recipient, unlike {self.name}")
        topic = self.name if to is None else self.topic(to)
        return Published(channel=self.name, topic=topic, event=message.name, data=message)


class Published(Event):
    """Something is pushed to all who have subscribed, as soon as the transaction commits."""

    name: ClassVar[str] = "channel.published"

    channel: str
    topic: str
    event: str
    data: SerializeAsAny[Message]
