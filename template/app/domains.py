"""Your own domains: the one place to mount them; template updates leave this file alone."""

from collections.abc import Sequence

from fastapi import APIRouter

from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.events import EventBus

# Behind the guard of app/api.py and the API's default rate limit.
PROTECTED_ROUTERS: Sequence[APIRouter] = ()

# Reachable by everyone, under the API's default rate limit.
PUBLIC_ROUTERS: Sequence[APIRouter] = ()


def subscribe(events: EventBus) -> None:
    """Subscribe your domains to events: `events.subscribe(BookLent, handler)`."""


def start_periodic(background: BackgroundRunner, database: Database) -> None:
    """Start your domains' periodic jobs: `background.every(60, "remind", job)`."""
