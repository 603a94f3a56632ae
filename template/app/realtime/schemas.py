"""The frames of the realtime protocol: JSON objects told apart by their `type`."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, SerializeAsAny, TypeAdapter

from app.core.channels import Message
from app.core.schemas import ApiInput

ChannelName = Annotated[str, Field(min_length=1, max_length=100)]
ErrorCode = Literal["forbidden", "invalid-message", "unknown-channel", "unknown-type"]


class Subscribe(ApiInput):
    """Asks for the events of a channel from now on."""

    type: Literal["subscribe"]
    channel: ChannelName


class Unsubscribe(ApiInput):
    """Ends a subscription."""

    type: Literal["unsubscribe"]
    channel: ChannelName


class Ping(ApiInput):
    """Asks whether the service still listens."""

    type: Literal["ping"]


ClientFrame = Annotated[Subscribe | Unsubscribe | Ping, Field(discriminator="type")]
CLIENT_FRAMES: TypeAdapter[Subscribe | Unsubscribe | Ping] = TypeAdapter(ClientFrame)


class Subscribed(BaseModel):
    """What is published from now on arrives."""

    type: Literal["subscribed"] = "subscribed"
    channel: str


class Unsubscribed(BaseModel):
    """Nothing more of the channel follows."""

    type: Literal["unsubscribed"] = "unsubscribed"
    channel: str


class EventFrame(BaseModel):
    """Something has happened."""

    type: Literal["event"] = "event"
    channel: str
    event: str
    data: SerializeAsAny[Message]


class Pong(BaseModel):
    """Answers a ping."""

    type: Literal["pong"] = "pong"


class ErrorFrame(BaseModel):
    """A frame was refused; the connection goes on."""

    type: Literal["error"] = "error"
    code: ErrorCode
    detail: str


ServerFrame = Annotated[
    Subscribed | Unsubscribed | EventFrame | Pong | ErrorFrame, Field(discriminator="type")
]
