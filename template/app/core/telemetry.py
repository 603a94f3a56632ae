"""Traces: what the service tells of requests, SQL, jobs and calls; nothing until it is set up."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from importlib import import_module
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import structlog
from fastapi.telemetry import TelemetryConfig
from opentelemetry.context import attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import Field, model_validator
from starlette.types import Scope

from app.core.settings import Section, SettingError
from app.core.statement_spans import fail, record_statements

__all__ = [
    "SpanKind",
    "TelemetrySettings",
    "annotate",
    "carry",
    "open_tracing",
    "resume",
    "span",
    "step",
    "trace_id",
    "trace_requests",
]

Sampler = Literal[
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
]

_PROTOCOL = "http/protobuf"
_FORMAT = TraceContextTextMapPropagator()

# Set as long as traces are recorded.
_tracer: Tracer | None = None


class TelemetrySettings(Section):
    """Where traces go, in OpenTelemetry's own variables; nowhere by default.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """

    OTEL_SDK_DISABLED: bool = Field(default=False, description="Whether nothing is recorded.")
    OTEL_TRACES_EXPORTER: Literal["otlp", "none", "docs"] | None = Field(
        default=None,
        description="`otlp` sends to this machine if no endpoint is named; `docs` keeps traces for "
        "`/docs/traces` instead, in development.",
    )
    OTEL_EXPORTER_OTLP_ENDPOINT: str | None = Field(
        default=None, description="The collector's URL, to which `/v1/traces` is added."
    )
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: str | None = Field(
        default=None, description="The whole URL for traces; comes before the other."
    )
    OTEL_EXPORTER_OTLP_PROTOCOL: str = _PROTOCOL
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: str | None = Field(
        default=None, description="Comes before the other."
    )
    OTEL_SERVICE_NAME: str | None = Field(
        default=None, description="What the service is called in traces; `APP_NAME` by default."
    )
    OTEL_TRACES_SAMPLER: Sampler = Field(
        default="parentbased_always_on",
        description="Which traces are recorded; those with a parent as their caller decided.",
    )
    OTEL_TRACES_SAMPLER_ARG: float = Field(
        default=1, ge=0, le=1, description="The share of traces that `traceidratio` records."
    )
    TRACE_OPERATIONS: bool = Field(
        default=False,
        description="Whether dependencies, handlers and serialisation have spans of their own.",
    )

    @property
    def traces_endpoint(self) -> str | None:
        """The URL that spans are sent to; `None` when nothing is to be recorded."""
        if self.OTEL_SDK_DISABLED or self.OTEL_TRACES_EXPORTER in {"none", "docs"}:
            return None
        if self.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT:
            return self.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
        base = self.OTEL_EXPORTER_OTLP_ENDPOINT
        if base is None and self.OTEL_TRACES_EXPORTER == "otlp":
            base = "http://localhost:4318"
        return base and f"{base.removesuffix('/')}/v1/traces"

    @property
    def keeps_traces(self) -> bool:
        """Whether spans are kept on this machine, for `/docs/traces`."""
        return self.OTEL_TRACES_EXPORTER == "docs" and not self.OTEL_SDK_DISABLED

    @property
    def records_traces(self) -> bool:
        """Whether anything is recorded at all."""
        return self.keeps_traces or self.traces_endpoint is not None

    def production_problems(self) -> Iterator[str]:
        yield from super().production_problems()
        if self.keeps_traces:
            yield "OTEL_TRACES_EXPORTER: `docs` is for development"

    @model_validator(mode="after")
    def _refuse_what_cannot_export(self) -> Self:
        if not self.records_traces:
            return self
        endpoint = self.traces_endpoint
        own = self.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
        if endpoint and (own or self.OTEL_EXPORTER_OTLP_PROTOCOL) != _PROTOCOL:
            which = "_TRACES" if own else ""
            raise SettingError(f"OTEL_EXPORTER_OTLP{which}_PROTOCOL: must be {_PROTOCOL}")
        if endpoint and not _is_url(endpoint):
            which = "_TRACES" if self.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT else ""
            message = f"OTEL_EXPORTER_OTLP{which}_ENDPOINT: is not a URL like http://host:4318"
            raise SettingError(message)
        try:
            # Imported only here: a service that records nothing needs neither.
            import_module("opentelemetry.sdk.trace")
            import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        except ImportError:
            message = "OTEL_*: exporting traces needs an extra: uv sync --extra telemetry"
            raise SettingError(message) from None
        return self


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def trace_requests(
    settings: TelemetrySettings, exclude: Callable[[Scope], bool]
) -> TelemetryConfig:
    """What FastAPI is to record: requests, but for those whose ASGI scope is to be excluded.

    Its metrics would double `/metrics`, and its logs hold the texts of exceptions.
    """
    return {
        "tracing": settings.records_traces,
        "metrics": False,
        "logs": False,
        "operation_spans": settings.TRACE_OPERATIONS,
        "auto_configure": False,
        "exclude": exclude,
    }


@asynccontextmanager
async def open_tracing(settings: TelemetrySettings, name: str) -> AsyncIterator[None]:
    """Record traces for the life of the process and send what is left at the end.

    Where the settings ask for none, nothing is imported, started or called.

    Args:
        settings: Where to send them, and which.
        name: What the service is called if the environment does not say.
    """
    global _tracer  # noqa: PLW0603
    if not settings.records_traces:
        yield
        return
    from app.core.trace_export import open_exporter  # noqa: PLC0415

    processors = structlog.get_config()["processors"]
    async with open_exporter(settings, name) as provider:
        _tracer = provider.get_tracer("app")
        processors.insert(0, _add_trace)
        try:
            with record_statements(_tracer):
                yield
        finally:
            if _add_trace in processors:
                processors.remove(_add_trace)
            _tracer = None


def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    cause: Mapping[str, str] | None = None,
    **attributes: str | int,
) -> AbstractContextManager[Span]:
    """Record what the block does; an error that leaves it is named by its type, never its text.

    Args:
        name: Of few different values: no ids.
        kind: Which part it has in a conversation of processes.
        cause: What `carry` gave where this was asked for; by default it is part of what is
            recorded now. Without either it begins a trace.
        attributes: Nothing that is personal or secret; `__` stands for a dot in their names.
    """
    if _tracer is None:
        return nullcontext(INVALID_SPAN)
    return _record(_tracer, name, kind, cause, attributes)


def step(
    name: str, kind: SpanKind = SpanKind.CLIENT, **attributes: str | int
) -> AbstractContextManager[Span]:
    """The same for what is only of interest as a part: it begins no trace of its own."""
    if _tracer is None or not trace_id():
        return nullcontext(INVALID_SPAN)
    return _record(_tracer, name, kind, None, attributes)


@contextmanager
def _record(
    tracer: Tracer,
    name: str,
    kind: SpanKind,
    cause: Mapping[str, str] | None,
    attributes: Mapping[str, str | int],
) -> Iterator[Span]:
    with tracer.start_as_current_span(
        name,
        None if cause is None else _FORMAT.extract(cause),
        kind,
        {key.replace("__", "."): value for key, value in attributes.items()},
        # Which would be with their texts.
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            fail(current, error)
            raise


def annotate(*, error: BaseException | str | None = None, **attributes: str | int) -> None:
    """Add to the innermost span: attributes as for `span`, and of an error its type."""
    current = get_current_span()
    for key, value in attributes.items():
        current.set_attribute(key.replace("__", "."), value)
    if error is not None:
        fail(current, error)


@contextmanager
def resume(cause: Mapping[str, str]) -> Iterator[None]:
    """Have what the block records be part of the trace of which `carry` has told."""
    token = attach(_FORMAT.extract(cause))
    try:
        yield
    finally:
        detach(token)


def carry() -> dict[str, str]:
    """What others need to continue the trace: W3C's `traceparent`, and `tracestate` if there is.

    While nothing is recorded, it is what the caller has sent, so that their trace goes on behind.
    """
    carrier: dict[str, str] = {}
    _FORMAT.inject(carrier)
    if not carrier and (sent := structlog.contextvars.get_contextvars().get("traceparent")):
        carrier["traceparent"] = sent
    return carrier


def trace_id() -> str | None:
    """The id of the trace that is recorded now, in hex; `None` outside of any."""
    found = get_current_span().get_span_context()
    return format_trace_id(found.trace_id) if found.is_valid else None


def _add_trace(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    found = get_current_span().get_span_context()
    if found.is_valid:
        # https://opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context/
        line["trace_id"] = format_trace_id(found.trace_id)
        line["span_id"] = format_span_id(found.span_id)
    return line
