"""A worker that knows the tests' jobs as well: `python -m tests.jobs.worker`."""

from app.core.jobs import JobRegistry
from app.core.logging import configure_logging
from app.core.worker_process import run_to_end
from app.settings import load_settings
from app.worker_lifespan import job_modules, serve
from tests.jobs import definitions


def create_registry() -> JobRegistry:
    """The service's jobs and the tests', without what some other release has."""
    jobs = JobRegistry.of([*job_modules(), definitions]).jobs
    del jobs[definitions.of_the_next_release.name]
    # Nothing periodic: a test that runs at that minute would find a job too many.
    return JobRegistry(jobs, ())


if __name__ == "__main__":
    settings = load_settings()
    configure_logging(settings)
    run_to_end(serve(settings, create_registry()))
