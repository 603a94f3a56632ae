"""Every resource of a worker: opened in order at start, closed in reverse at the end."""

import asyncio
import pkgutil
import signal
from contextlib import AsyncExitStack
from importlib import import_module
from types import ModuleType

import app
from app.api import subscribe
from app.core import housekeeping
from app.core.arq_queue import ArqQueue
from app.core.background import BackgroundRunner
from app.core.cache import Cache
from app.core.database import Database
from app.core.events import EventBus
from app.core.heartbeat import Heartbeat, beat
from app.core.http_client import open_http_client
from app.core.job_clock import JobClock
from app.core.job_runner import JobRunner
from app.core.jobs import JobRegistry
from app.core.outbox import JobsEnqueued
from app.core.redis import create_pool, open_redis
from app.core.relay import Relay, listen, wake_relays
from app.settings import Settings


def job_modules() -> list[ModuleType]:
    """Every module named `jobs` of the domains, however deep, and core's own jobs."""
    names = [module.name for module in pkgutil.walk_packages(app.__path__, "app.")]
    domains = [name for name in names if name.endswith(".jobs") and not name.startswith("app.core")]
    return [housekeeping, *map(import_module, domains)]


async def run(settings: Settings, registry: JobRegistry, stopping: asyncio.Event) -> None:
    """Run jobs until `stopping` is set, then let those in hand finish or go back.

    Raises:
        Exception: one of the tasks beside the jobs has failed for good, such as the heartbeat on a
            disk that cannot be written; the jobs have been let go as above.
    """
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
                JobClock(registry.periodic, database).run(),
                beat(settings.WORKER_HEARTBEAT_FILE, state),
            )
        ]
        for helper in helpers:
            # None of them ends by itself. A worker without one must not look as if all were well.
            helper.add_done_callback(lambda _: stopping.set())
        try:
            await queue.serve(registry, runner, stopping)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)
        for helper in helpers:
            if not helper.cancelled():
                helper.result()


async def serve(settings: Settings, registry: JobRegistry) -> None:
    """Run jobs until SIGTERM or SIGINT, which let those in hand finish or go back."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await run(settings, registry, stopping)
