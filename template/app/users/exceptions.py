"""How the users API refuses: each error carries its HTTP status."""

from app.core.errors import ConflictError, NotFoundError, UnprocessableError


class UserNotFoundError(NotFoundError):
    """There is no such user."""

    code = "user-not-found"
    title = "User not found"


class EmailTakenError(ConflictError):
    """Somebody has registered with this address already."""

    code = "email-taken"
    title = "E-mail address taken"


class OwnAccessError(ConflictError):
    """An admin wants to change their own role or to deactivate themselves."""

    code = "own-access"
    title = "Own access cannot be changed"


class PasswordRefusedError(UnprocessableError):
    """The password does not fit, or must not be used; `errors` says which and why."""

    code = "password-refused"
    title = "Password refused"
