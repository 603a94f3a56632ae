"""The worker's command: runs the jobs that the service has handed over, or tells how it is."""

import argparse
import logging
import os
import sys

from app.core.heartbeat import Heartbeat, find_problem, heartbeat_file, write_heartbeat


def main(arguments: list[str] | None = None) -> None:
    """Run a worker, or with `--check` tell a probe how the one on this machine is."""
    parser = argparse.ArgumentParser(prog="python -m app.worker", description=main.__doc__)
    parser.add_argument(
        "--check",
        nargs="?",
        const="ready",
        choices=["ready", "live"],
        help="exit with 0 when the worker is ready (default) or alive, else with 1 and the reason",
    )
    check = parser.parse_args(arguments).check
    if check:
        # Not from the settings: a probe comes every few seconds and must not load the service.
        configured = os.environ.get("WORKER_HEARTBEAT_FILE")  # noqa: TID251
        try:
            file = heartbeat_file(configured)
        except FileNotFoundError as error:
            sys.exit(f"there is no heartbeat: {error.strerror}")
        sys.exit(find_problem(file, ready=check == "ready"))
    _run()


def _run() -> None:
    from app.core.jobs import JobRegistry  # noqa: PLC0415
    from app.core.logging import configure_logging  # noqa: PLC0415
    from app.core.worker_process import run_to_end  # noqa: PLC0415
    from app.settings import InvalidSettingsError, load_settings  # noqa: PLC0415
    from app.worker_lifespan import job_modules, serve  # noqa: PLC0415

    try:
        settings = load_settings()
    except InvalidSettingsError as error:
        sys.exit(f"The worker cannot start with this environment:\n{error}")
    try:
        file = heartbeat_file(settings.WORKER_HEARTBEAT_FILE)
        write_heartbeat(file, Heartbeat(working_at=0, draining=False))
    except OSError as error:
        sys.exit(
            "The worker cannot start, as it could not show that it is alive: "
            f"WORKER_HEARTBEAT_FILE: name a file in a folder that can be written ({error})"
        )
    configure_logging(settings)
    # Two lines for each ticket; the runner has one for each try, with the job's name.
    logging.getLogger("arq").setLevel(logging.WARNING)
    run_to_end(serve(settings, JobRegistry.of(job_modules())))


if __name__ == "__main__":
    main()
