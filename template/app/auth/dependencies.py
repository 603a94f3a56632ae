"""What the auth routes ask for."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.auth.service import Client, LoginService, SessionService
from app.auth.throttle import LoginThrottle
from app.core.access_tokens import AccessTokens
from app.core.fair_limiter import subscriber_of
from app.core.rate_limit import caller

_MAX_USER_AGENT = 255


async def get_client(connection: HTTPConnection) -> Client:
    """Who sends the request."""
    user_agent = connection.headers.get("User-Agent", "").strip()[:_MAX_USER_AGENT]
    printable = "".join(character for character in user_agent if character.isprintable())
    return Client(caller(connection), printable or None, subscriber_of(connection))


async def get_sessions(connection: HTTPConnection) -> SessionService:
    """The sessions, in transactions of their own."""
    state = connection.state
    return SessionService(state.database, state.access_tokens, state.settings)


SessionsDep = Annotated[SessionService, Depends(get_sessions)]


async def get_login(connection: HTTPConnection, sessions: SessionsDep) -> LoginService:
    """Logging in, in transactions of its own."""
    state = connection.state
    access_tokens: AccessTokens = state.access_tokens
    throttle = LoginThrottle(state.rate_limiter, state.settings, access_tokens.keys.shared_secret)
    return LoginService(state.database, state.passwords, throttle, sessions)


ClientDep = Annotated[Client, Depends(get_client)]
LoginDep = Annotated[LoginService, Depends(get_login)]
