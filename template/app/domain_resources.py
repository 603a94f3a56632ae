"""What your domains need open: the one place to open it; template updates leave this file alone.

Name in `DomainState` what `open_resources` yields. Each request has it in its state, from where a
dependency of the domain that it belongs to hands it out, typed:

    async def get_printer(connection: HTTPConnection) -> Printer:
        printer: Printer = connection.state.printer
        return printer
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

import httpx2

from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.events import EventBus
from app.health.service import HealthService
from app.settings import Settings


class DomainState(TypedDict):
    """What is open for as long as the process lives: `printer: Printer`."""


@asynccontextmanager
async def open_resources(
    settings: Settings, database: Database, http_client: httpx2.AsyncClient, events: EventBus
) -> AsyncIterator[DomainState]:
    """Open it in each process of the service, and close it after what has used it has ended.

    Handlers that need it subscribe here: `events.subscribe(BookLent, printer.print_slip)`.
    """
    yield DomainState()


def start(
    resources: DomainState, health: HealthService, background: BackgroundRunner, database: Database
) -> None:
    """Add readiness checks and periodic work, in each process that answers requests.

    `health.add("printer", resources["printer"].ping, required=False)`
    """
