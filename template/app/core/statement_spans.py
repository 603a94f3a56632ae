"""A span for each SQL statement of a trace, with the statement and never its values."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, get_current_span
from sqlalchemy import Engine, event
from sqlalchemy.engine import Connection, ExceptionContext

# More says nothing new: such statements insert many rows.
_MAX_STATEMENT = 2000
_TABLE = re.compile(r'\b(?:FROM|INTO|UPDATE)\s+"?(\w+)')
# Behind comments.
_OPERATION = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*([A-Za-z]+)", re.DOTALL)
_STARTED = "span"


@contextmanager
def record_statements(tracer: Tracer) -> Iterator[None]:
    """Record what any engine of the process executes inside of a trace."""

    def before(
        connection: Connection, _: Any, statement: str, __: Any, ___: Any, ____: bool
    ) -> None:
        # What belongs to no request, such as looking for work, is of no interest.
        if get_current_span().get_span_context().is_valid:
            connection.info[_STARTED] = _start(tracer, connection.dialect.name, statement)

    def after(connection: Connection, *_: Any) -> None:
        span: Span | None = connection.info.pop(_STARTED, None)
        if span is not None:
            span.end()

    def failed(context: ExceptionContext) -> None:
        # Without one when connecting has failed.
        connection = context.connection
        span: Span | None = connection.info.pop(_STARTED, None) if connection else None
        if span is not None:
            fail(span, context.original_exception)
            span.end()

    listeners: dict[str, Callable[..., None]] = {
        "before_cursor_execute": before,
        "after_cursor_execute": after,
        "handle_error": failed,
    }
    for moment, listener in listeners.items():
        event.listen(Engine, moment, listener)
    try:
        yield
    finally:
        for moment, listener in listeners.items():
            event.remove(Engine, moment, listener)


def _start(tracer: Tracer, system: str, statement: str) -> Span:
    found = _OPERATION.match(statement)
    operation = found[1].upper() if found else "SQL"
    table = _TABLE.search(statement)
    return tracer.start_span(
        f"{operation} {table[1]}" if table else operation,
        kind=SpanKind.CLIENT,
        attributes={
            "db.system.name": system,
            "db.operation.name": operation,
            # With placeholders: values are sent apart from it.
            "db.query.text": statement[:_MAX_STATEMENT],
        },
    )


def fail(span: Span, error: BaseException | str) -> None:
    """Mark a span as failed, by the error's type: its text may hold anything."""
    span.set_attribute("error.type", error if isinstance(error, str) else type(error).__qualname__)
    span.set_status(StatusCode.ERROR)
