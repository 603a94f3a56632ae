"""What happens to users, as other parts of the service may subscribe to it."""

from typing import ClassVar, Literal
from uuid import UUID

from app.core.events import Event


class UserRegistered(Event):
    """Somebody has made an account."""

    name: ClassVar[str] = "user.registered"

    user_id: UUID


class AccessChanged(Event):
    """The access tokens that a user had so far are void: their epoch was raised."""

    name: ClassVar[str] = "user.access_changed"

    user_id: UUID
    reason: Literal["password_changed", "deactivated", "activated", "role_changed", "logged_out"]

    @property
    def ends_sessions(self) -> bool:
        """Whether the user must log in again, rather than just refresh."""
        return self.reason in ("password_changed", "deactivated", "logged_out")
