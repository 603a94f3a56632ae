"""Events keep their trace on the way between processes, also beside releases that know of none."""

from contextlib import AsyncExitStack
from uuid import uuid4

import anyio
from pydantic import SecretStr

from app.core.channels import Channel, Message
from app.core.redis import RedisSettings, open_redis
from app.core.telemetry import open_tracing, span
from app.realtime.hub import Hub
from app.realtime.limits import RealtimeSettings
from app.realtime.redis_broker import open_broker
from tests.fixtures.tracing import Traces
from tests.realtime.client import PATIENCE_SECONDS
from tests.realtime.test_redis_broker import Hearer


class Told(Message):
    name = "news.told"


NEWS = Channel("news", messages=(Told,))
FRAME = '{"type":"event","channel":"news","event":"news.told","data":{}}'


async def test_an_event_keeps_its_trace_and_its_frame(redis_url: str, traces: Traces) -> None:
    settings = RedisSettings(
        REDIS_URL=SecretStr(redis_url), REDIS_KEY_PREFIX=f"test-{uuid4().hex[:8]}"
    )
    near, far = Hearer(), Hearer()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_tracing(traces.settings, "tests"))
        redis = await stack.enter_async_context(open_redis(settings))
        hubs = [Hub(RealtimeSettings(), {}) for _ in range(2)]
        for hub, hearer in zip(hubs, (near, far), strict=True):
            await stack.enter_async_context(open_broker(settings, redis, hub))
            await hub.listen(NEWS, "news", hearer)
        pubsub = redis.raw.pubsub()
        stack.push_async_callback(pubsub.aclose)
        channel = redis.key("realtime", "0", "news")
        await pubsub.subscribe(channel)

        with span("cause") as cause:
            hubs[0].publish(NEWS, Told())
        await far.hears(FRAME)
        with anyio.fail_after(PATIENCE_SECONDS):
            while not (message := await pubsub.get_message(True, timeout=1)):
                pass
        # What releases before 1.5 read, and what they write.
        assert message["data"][32:].decode() == FRAME
        await redis.raw.publish(channel, uuid4().hex + "old")
        await far.hears("old")
        await near.hears("old")
        spans = traces.spans()

    assert near.heard == far.heard == [FRAME, "old"]
    assert {span.context.trace_id for span in spans} == {cause.get_span_context().trace_id}
    names = sorted(span.name for span in spans)
    assert names == ["cause", "deliver news", "deliver news", "publish news.told"]
