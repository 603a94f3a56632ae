"""A worker that knows the tests' jobs as well: `python -m tests.jobs.worker`."""

import asyncio

from app.core.jobs import JobRegistry
from app.core.logging import configure_logging
from app.settings import load_settings
from app.worker_lifespan import job_modules, serve
from tests.jobs import definitions

if __name__ == "__main__":
    settings = load_settings()
    configure_logging(settings)
    registry = JobRegistry.of([*job_modules(), definitions])
    # Some other release has this one.
    del registry.jobs[definitions.of_the_next_release.name]
    asyncio.run(serve(settings, registry))
