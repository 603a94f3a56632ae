"""What happens to sessions, as other parts of the service may subscribe to it."""

from typing import ClassVar
from uuid import UUID

from app.core.events import Event


class SessionEnded(Event):
    """One session of a user is over; their others go on."""

    name: ClassVar[str] = "auth.session_ended"

    user_id: UUID
    session_id: UUID
