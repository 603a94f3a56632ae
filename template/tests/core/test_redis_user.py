"""A Redis user that may use the service's own keys and channels only, and no INFO."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel, SecretStr
from redis import Redis

from app.core.background import BackgroundRunner
from app.core.cache import Cache, CacheSpace
from app.core.events import EventBus
from app.core.heartbeat import find_problem
from app.core.rate_limit import RateLimit
from app.core.redis import open_redis
from app.core.redis_rate_limit import RedisRateLimiter
from app.settings import Settings
from devtools.valkey import ValkeyServer
from tests.fixtures.jobs import Jobs, WorkHere, eventually
from tests.jobs import definitions
from tests.jobs.definitions import Note

PREFIX = "my-service"
# As the README has it.
RULES = f"on >secret-of-ours ~{PREFIX}:* &{PREFIX}:* +@all -@admin -@dangerous"


@pytest.fixture
def confined(
    private_redis: ValkeyServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """The settings of a service whose user is confined."""
    url = private_redis.start().url()
    with Redis.from_url(url) as admin:
        admin.execute_command("ACL SETUSER", PREFIX, *RULES.split())
    theirs = f"redis://{PREFIX}:secret-of-ours@127.0.0.1:{urlsplit(url).port}/0"
    changes = {"REDIS_URL": SecretStr(theirs), "REDIS_KEY_PREFIX": PREFIX}
    return settings.model_copy(update=changes)


class Thing(BaseModel):
    """What is cached."""

    number: int


async def load() -> Thing:
    return Thing(number=1)


async def test_everything_works_and_nothing_else_is_tried(
    confined: Settings,
    private_redis: ValkeyServer,
    jobs: Jobs,
    work_here: WorkHere,
    tmp_path: Path,
) -> None:
    async with work_here(
        REDIS_URL=confined.REDIS_URL, REDIS_KEY_PREFIX=PREFIX, REDIS_TIMEOUT_SECONDS=10
    ) as worker:
        await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
        await eventually(jobs.rows, lambda rows: rows[0].done_at is not None, 20)

        async def problem() -> str | None:
            return find_problem(worker.heartbeat, ready=True)

        await eventually(problem, lambda found: found is None, 20)
        with Redis.from_url(private_redis.server.url()) as admin:
            # What the worker's relay listens to.
            [channel] = admin.pubsub_channels()
            assert channel.startswith(f"{PREFIX}:".encode())
            assert admin.publish(channel, b"") == 1

    async with open_redis(confined) as client:
        await client.ping()
        cache = Cache(confined, client, EventBus(BackgroundRunner(confined)))
        space = CacheSpace("things", Thing)
        assert await cache.get_or_load(space, "ada", 1, load) == Thing(number=1)
        limiter = RedisRateLimiter(confined, client)
        assert (await limiter.hit("ada", RateLimit(1, 60))).allowed
        assert not (await limiter.hit("ada", RateLimit(1, 60))).allowed

    with Redis.from_url(private_redis.server.url()) as admin:
        assert admin.execute_command("ACL LOG") == []
        kept = admin.keys("*")
    assert kept
    assert all(key.startswith(f"{PREFIX}:".encode()) for key in kept)
