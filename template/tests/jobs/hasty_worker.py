"""The tests' worker, without patience for jobs that do not end."""

from app.core import job_task, worker_process
from app.core.logging import configure_logging
from app.settings import load_settings
from app.worker_lifespan import serve
from tests.jobs.worker import create_registry

if __name__ == "__main__":
    job_task.GRACE_SECONDS = 0.2
    worker_process._PATIENCE_SECONDS = 0.2
    settings = load_settings()
    configure_logging(settings)
    worker_process.run_to_end(serve(settings, create_registry()))
