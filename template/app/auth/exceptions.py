"""How the auth API refuses; none of the answers tells whether an account exists."""

from app.core.errors import NotFoundError, TooManyRequestsError, UnauthenticatedError


class InvalidCredentialsError(UnauthenticatedError):
    """The account or the password is wrong, or the account is deactivated."""

    code = "invalid-credentials"
    title = "Credentials not valid"


class InvalidRefreshTokenError(UnauthenticatedError):
    """The refresh token is unknown, used, revoked or expired: log in again."""

    code = "invalid-refresh-token"
    title = "Refresh token not valid"


class LoginThrottledError(TooManyRequestsError):
    """Too many logins have failed, for this account or from this address."""

    code = "login-throttled"
    title = "Too many failed logins"


class SessionNotFoundError(NotFoundError):
    """The user has no such session, or not any more."""

    code = "session-not-found"
    title = "Session not found"
