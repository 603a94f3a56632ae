"""OpenTelemetry's SDK; only imported where traces are exported, as it is an extra."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from app.core.telemetry import TelemetrySettings
from app.core.trace_file import TraceFile, to_line

# How long the process's end waits for a collector.
_END_SECONDS = 3.0
# The characters that are to be passed on at least: https://www.w3.org/TR/trace-context/#tracestate-limits
_MAX_TRACE_STATE = 512


class _Cautious(Sampler):
    """Takes out before anything is recorded what strangers should not have recorded.

    Query strings may hold personal data. A long `tracestate` of a caller would go into each span,
    each log line and each row of what follows from the request.
    """

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner

    def should_sample(  # noqa: PLR0917
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        kept = {key: it for key, it in (attributes or {}).items() if key != "url.query"}
        found = self._inner.should_sample(
            parent_context, trace_id, name, kind, kept, links, trace_state
        )
        if not found.trace_state or len(found.trace_state.to_header()) <= _MAX_TRACE_STATE:
            return found
        return SamplingResult(found.decision, found.attributes, TraceState())

    def get_description(self) -> str:
        return self._inner.get_description()


def _sampler(settings: TelemetrySettings) -> Sampler:
    name = settings.OTEL_TRACES_SAMPLER
    root = {
        "always_on": ALWAYS_ON,
        "always_off": ALWAYS_OFF,
        "traceidratio": TraceIdRatioBased(settings.OTEL_TRACES_SAMPLER_ARG),
    }[name.removeprefix("parentbased_")]
    return _Cautious(ParentBased(root) if name.startswith("parentbased_") else root)


def _resource(settings: TelemetrySettings, name: str) -> Resource:
    # What OTEL_RESOURCE_ATTRIBUTES says counts as well.
    found = Resource.create()
    named = settings.OTEL_SERVICE_NAME
    if named is None and str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        named = name
    return found if named is None else found.merge(Resource({SERVICE_NAME: named}))


def _processor(endpoint: str | None) -> SpanProcessor:
    if endpoint is None:
        writer = ConsoleSpanExporter(out=TraceFile(), formatter=to_line)
        # Somebody is looking at the page.
        return BatchSpanProcessor(writer, schedule_delay_millis=250)
    return BatchSpanProcessor(trace_exporter.OTLPSpanExporter(endpoint=endpoint))


@asynccontextmanager
async def open_exporter(settings: TelemetrySettings, name: str) -> AsyncIterator[TracerProvider]:
    """Send spans in batches from a thread; at the end wait three seconds for the last one.

    Args:
        settings: Which traces to record, and where to send them.
        name: What the service is called if the environment does not say.
    """
    provider = TracerProvider(_sampler(settings), _resource(settings, name), shutdown_on_exit=False)
    provider.add_span_processor(_processor(settings.traces_endpoint))
    # Also for spans of your own: `opentelemetry.trace.get_tracer(__name__)`.
    trace.set_tracer_provider(provider)
    try:
        yield provider
    finally:
        # A thread that the process's end need not wait for.
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            provider.shutdown()
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=end, daemon=True).start()
        with anyio.move_on_after(_END_SECONDS, shield=True):
            await ended.wait()
