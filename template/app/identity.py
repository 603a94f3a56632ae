"""Users and their sessions: which of their routers need a token, their events, their jobs."""

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.params import Depends

from app.auth import router as auth
from app.auth.handlers import start_periodic, subscribe
from app.core.security import serve_schema
from app.users import router as users

__all__ = ["include_routers", "start_periodic", "subscribe"]


def include_routers(app: FastAPI, limited: Sequence[Depends], guarded: Sequence[Depends]) -> None:
    """Mount the routers of users and sessions, and document how to log in.

    Args:
        app: What they are mounted on.
        limited: The dependencies of what everybody may call.
        guarded: The dependencies of what needs a token.
    """
    serve_schema(app)
    for protected in (auth.router, users.router):
        app.include_router(protected, dependencies=guarded)
    for public in (auth.public_router, auth.well_known_router, users.public_router):
        app.include_router(public, dependencies=limited)
