"""Where log lines go and how they look: one pipeline for ours and for every library's."""

import json
import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Literal, Protocol

import orjson
import structlog
from pydantic import Field, field_validator
from structlog.typing import Processor

from app.core.settings import Section

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

# One list for good, changed in place: loggers keep a reference to it when they are first used.
_PROCESSORS: list[Processor] = []

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_TEXT = {code: text for code, text in _CONTROLS.items() if chr(code) not in "\n\t"}
# Written by code, over several lines at times.
_MULTILINE = frozenset({"event", "stack"})
# An error may quote whatever somebody has sent, of any length.
_MAX_VALUE = 32_000

# uvicorn's words on WebSockets, of which RequestMiddleware tells as of requests.
_ON_WEBSOCKETS = (
    # With the query string, which may hold personal data.
    '%s - "WebSocket ',
    "connection open",
    "connection closed",
    "connection rejected",
    # As an error, of each handshake that is refused with a response (Kludex/uvicorn#3138).
    "ASGI callable returned without completing handshake.",
    # As an error with its stack, which any client can cause.
    "Invalid UTF-8 sequence received from client.",
)


class LoggingSettings(Section):
    """What is logged."""

    LOG_LEVEL: LogLevel = Field(default="INFO", description="The least severe level to log.")

    @field_validator("LOG_LEVEL", mode="before")
    @classmethod
    def _accept_any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


class ProcessSettings(Protocol):
    """What logging needs to know of the settings."""

    @property
    def LOG_LEVEL(self) -> LogLevel:  # noqa: N802
        """The least severe level to log."""

    @property
    def DEBUG(self) -> bool:  # noqa: N802
        """Whether to log every SQL statement."""

    @property
    def is_production(self) -> bool:
        """Whether lines are for machines."""


def configure_logging(settings: ProcessSettings) -> None:
    """Send every log line of the process to standard output; may be called again.

    Production writes one JSON object a line, tracebacks included. Elsewhere lines are for people,
    coloured on a terminal. Every line carries what is bound to the context, such as `request_id`.
    """
    level = logging.getLevelNamesMapping()[settings.LOG_LEVEL]
    _PROCESSORS[:] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *(_json_renderers() if settings.is_production else _console_renderers()),
    ]
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_StandardOutput,
        # Saves a microsecond a line; a cached logger keeps its level for good, which only suits
        # a process that is configured once.
        cache_logger_on_first_use=settings.is_production,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ForwardHandler)]:
        root.removeHandler(handler)
    root.addHandler(_ForwardHandler())
    root.setLevel(level)
    # Its line for every call repeats whole URLs, and those may hold credentials.
    logging.getLogger("httpx2").setLevel(max(level, logging.WARNING))
    # Engines look at this when they are created.
    statements = logging.getLogger("sqlalchemy.engine.Engine")
    statements.setLevel(logging.INFO if settings.DEBUG else logging.WARNING)
    logging.captureWarnings(capture=True)
    _take_over_uvicorn()


def _json_renderers() -> list[Processor]:
    return [structlog.processors.format_exc_info, _shorten, _render_json]


def _console_renderers() -> list[Processor]:
    return [
        _shorten,
        _escape_controls,
        structlog.dev.ConsoleRenderer(
            colors=bool(sys.stdout) and sys.stdout.isatty(),
            # The default prints local variables, which hold what must not be logged.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _shorten(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and len(value) > _MAX_VALUE:
            # The end of a traceback names the error.
            half = _MAX_VALUE // 2
            event[name] = f"{value[:half]} [{len(value)} characters] {value[-half:]}"
    return event


def _escape_controls(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # A path may hold what moves a terminal's cursor or ends the line; JSON escapes it anyway.
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = value.translate(_TEXT if name in _MULTILINE else _CONTROLS)
    return event


def _render_json(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # orjson refuses what JSON or UTF-8 has no form for: huge integers, lone surrogates.
        return json.dumps(event, default=str, skipkeys=True).encode()


def _take_over_uvicorn() -> None:
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    # RequestMiddleware writes the access lines. uvicorn asks each new connection's logger whether
    # it has handlers, and without one does not even put its own line together.
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_ON_WEBSOCKETS)


class _ForwardHandler(logging.Handler):
    """Passes the standard library's records on to structlog, so that both look the same."""

    _log = structlog.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # Libraries have levels in between, such as uvicorn's TRACE; structlog knows the five.
            level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
            exception = {"exc_info": record.exc_info} if record.exc_info else {}
            message = record.getMessage().rstrip()
            self._log.log(level, message, logger=record.name, **exception)
        except Exception:  # noqa: BLE001
            self.handleError(record)


class _StandardOutput:
    """Writes rendered lines; asks for the stream each time, as test runners and daemons swap it."""

    def __init__(self, *_: Any) -> None:
        pass

    def msg(self, line: bytes | str) -> None:
        # One write per line, so that lines of several threads or processes do not mix.
        if isinstance(line, str):
            line = line.encode(errors="backslashreplace")
        # A closed, broken or missing stream costs the line, not the request.
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()

    debug = info = warning = error = critical = msg
