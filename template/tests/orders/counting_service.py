"""The service as a process that prints a line for each query of an order."""

import sys
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Engine, event

from app import main
from app.core import cache

QUERY = "an order was queried"


def create_app() -> FastAPI:
    """Build the service as `uvicorn --factory` would."""
    # Readers wait for each other however slow the machine is.
    cache._WAIT_SECONDS = 60
    cache._LEASE_SECONDS = 60
    event.listen(Engine, "before_cursor_execute", _note)
    return main.create_app()


def _note(*arguments: Any) -> None:
    # Not the sweep, which reads the orders of everyone.
    if "orders.owner_id =" in arguments[2]:
        sys.stdout.write(f"{QUERY}\n")
        sys.stdout.flush()
