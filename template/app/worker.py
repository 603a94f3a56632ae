"""The worker's composition root: runs the jobs that the service has handed over."""

import argparse
import asyncio
import logging
import pkgutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType

import app
from app.api import subscribe
from app.core import housekeeping
from app.core.arq_queue import ArqQueue
from app.core.background import BackgroundRunner
from app.core.cache import Cache
from app.core.database import Database
from app.core.events import EventBus
from app.core.heartbeat import Heartbeat, beat, find_problem
from app.core.http_client import open_http_client
from app.core.job_runner import JobRunner
from app.core.jobs import JobRegistry
from app.core.logging import configure_logging
from app.core.outbox import JobsEnqueued
from app.core.redis import create_pool, open_redis
from app.core.relay import Relay, listen, wake_relays
from app.settings import InvalidSettingsError, Settings, load_settings


def job_modules() -> list[ModuleType]:
    """Every module named `jobs` of the domains, however deep, and core's own jobs."""
    names = [module.name for module in pkgutil.walk_packages(app.__path__, "app.")]
    domains = [name for name in names if name.endswith(".jobs") and not name.startswith("app.core")]
    return [housekeeping, *map(import_module, domains)]


async def run(settings: Settings, registry: JobRegistry, stopping: asyncio.Event) -> None:
    """Run jobs until `stopping` is set, then let those in hand finish or go back."""
    async with AsyncExitStack() as stack:
        background = BackgroundRunner(settings)
        events = EventBus(background)
        subscribe(events)

        database = Database(settings, events)
        stack.push_async_callback(database.close)
        http_client = await stack.enter_async_context(open_http_client(settings))
        redis = await stack.enter_async_context(open_redis(settings))
        # Forgets what jobs change.
        Cache(settings, redis, events)
        events.subscribe(JobsEnqueued, wake_relays(redis))
        # What jobs do after their commits finishes while what it uses is still open.
        await stack.enter_async_context(background)

        queue = ArqQueue(settings, create_pool(settings), redis.key("jobs"))
        stack.push_async_callback(queue.close)
        relay = Relay(database, queue, settings)
        runner = JobRunner(registry, database, http_client, settings, wake_relay=relay.wake)

        def state() -> Heartbeat:
            return Heartbeat(queue.polled_at, draining=stopping.is_set())

        helpers = [
            asyncio.create_task(work)
            for work in (
                relay.run(),
                listen(redis, settings, relay.wake),
                runner.keep_leases(),
                beat(heartbeat_file(settings), state),
            )
        ]
        try:
            await queue.serve(registry, runner, database, stopping)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)


def heartbeat_file(settings: Settings) -> Path:
    """Where the worker of this machine or container shows that it is alive."""
    if settings.WORKER_HEARTBEAT_FILE is not None:
        return settings.WORKER_HEARTBEAT_FILE
    return Path(tempfile.gettempdir()) / f"{settings.REDIS_KEY_PREFIX}-worker.json"


async def serve(settings: Settings, registry: JobRegistry) -> None:
    """Run jobs until SIGTERM or SIGINT, which let those in hand finish or go back."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await run(settings, registry, stopping)


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
    options = parser.parse_args(arguments)
    try:
        settings = load_settings()
    except InvalidSettingsError as error:
        sys.exit(f"The worker cannot start with this environment:\n{error}")
    if options.check:
        sys.exit(find_problem(heartbeat_file(settings), ready=options.check == "ready"))
    configure_logging(settings)
    # Two lines for each ticket; the runner has one for each try, with the job's name.
    logging.getLogger("arq").setLevel(logging.WARNING)
    asyncio.run(serve(settings, JobRegistry.of(job_modules())))


if __name__ == "__main__":
    main()
