"""Every table of the service: imports each domain's `models.py` so that Alembic sees them all."""

import pkgutil
from importlib import import_module
from importlib.util import find_spec

import app
from app.core import idempotency
from app.core.database import Base

__all__ = ["idempotency", "metadata"]

for _domain in pkgutil.iter_modules(app.__path__):
    if _domain.ispkg and find_spec(f"app.{_domain.name}.models"):
        import_module(f"app.{_domain.name}.models")

metadata = Base.metadata
