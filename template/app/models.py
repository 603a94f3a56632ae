"""Every table of the service: imports all modules that may define some, for Alembic to see."""

import pkgutil
from importlib import import_module

import app
from app.core.database import Base

__all__ = ["metadata"]

# Each domain's `models.py`, however deep; core's tables stand beside what uses them.
for _module in pkgutil.walk_packages(app.__path__, "app."):
    # Needs packages that are only there where traces are sent somewhere.
    if _module.name == "app.core.trace_export":
        continue
    if _module.name.endswith(".models") or _module.name.startswith("app.core."):
        import_module(_module.name)

metadata = Base.metadata
