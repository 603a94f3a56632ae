"""One pipeline for every log line."""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from app.core.logging import LoggingSettings, LogLevel, configure_logging
from app.core.settings import AppSettings, Environment
from tests.fixtures.application import Connect, MakeApp


class Settings(AppSettings, LoggingSettings):
    """What logging needs to know."""


Configure = Callable[[Environment, LogLevel], None]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    configure_logging(Settings(ENVIRONMENT=Environment.TEST))


def configure(environment: Environment = Environment.PRODUCTION, level: LogLevel = "INFO") -> Any:
    """Configure logging and return a logger that nobody has used before."""
    configure_logging(Settings(ENVIRONMENT=environment, LOG_LEVEL=level))
    return structlog.get_logger()


def fail(secret: str) -> None:
    """Raise an error from a frame that holds something secret."""
    message = f"{len(secret)} characters"
    raise ValueError(message)


def only_line(capture: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one line that was written, as JSON."""
    [line] = capture.readouterr().out.splitlines()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_production_writes_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = configure()
    with structlog.contextvars.bound_contextvars(request_id="mine"):
        log.info("book lent", total=3)
    line = only_line(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "book lent", "level": "info", "total": 3, "request_id": "mine"}


@pytest.mark.parametrize("debug", [True, False])
async def test_debugging_logs_every_statement(
    debug: bool, make_app: MakeApp, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    async with connect(make_app(DEBUG=debug)) as client:
        assert (await client.get("/health/ready")).status_code == 200
    assert ("SELECT" in capsys.readouterr().out) is debug


def test_a_traceback_is_part_of_its_line_and_shows_no_variables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = configure()
    try:
        fail("hunter" + "2")
    except ValueError:
        log.exception("failed")
    line = only_line(capsys)
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: 7 characters")
    assert "hunter2" not in line["exception"]


def test_the_standard_library_s_lines_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    with structlog.contextvars.bound_contextvars(request_id="mine"):
        logging.getLogger("somewhere").warning("%s of %s", 1, 2)
    line = only_line(capsys)
    assert line["event"] == "1 of 2"
    assert (line["level"], line["logger"]) == ("warning", "somewhere")
    assert line["request_id"] == "mine"


def test_the_standard_library_s_tracebacks_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    try:
        fail("")
    except ValueError:
        logging.getLogger("somewhere").exception("failed")
    assert only_line(capsys)["exception"].endswith("ValueError: 0 characters")


def test_a_level_of_a_library_s_own_is_rounded_down(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    logging.getLogger("somewhere").log(25, "in between")
    assert only_line(capsys)["level"] == "info"


def test_a_broken_call_of_a_library_does_not_raise(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    record = logging.makeLogRecord({"msg": "%d", "args": ("not a number",)})
    # pytest's own handler, also on this logger, does raise.
    logging.getLogger().handlers[-1].handle(record)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not a number" in captured.err


def test_warnings_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        # pytest has its own recipient of warnings for each test.
        logging.captureWarnings(capture=False)
        warnings.simplefilter("always")
        configure()
        warnings.warn("this is going away", DeprecationWarning, stacklevel=1)
    line = only_line(capsys)
    assert line["logger"] == "py.warnings"
    assert "DeprecationWarning: this is going away" in line["event"]


@pytest.mark.parametrize("level", ["WARNING", "CRITICAL"])
def test_what_is_less_severe_is_left_out(
    capsys: pytest.CaptureFixture[str], level: LogLevel
) -> None:
    log = configure(level=level)
    log.info("ours")
    logging.getLogger("somewhere").info("theirs")
    assert capsys.readouterr().out == ""
    log.critical("heard")
    assert only_line(capsys)["event"] == "heard"


def test_configuring_again_does_not_repeat_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    configure()
    logging.getLogger("somewhere").warning("once")
    only_line(capsys)


def test_uvicorn_s_access_log_is_off_and_its_other_lines_are_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("uvicorn", "uvicorn.access"):
        logging.getLogger(name).addHandler(logging.StreamHandler())
    configure()
    # This is what uvicorn asks on each connection before it puts a line together.
    assert not logging.getLogger("uvicorn.access").hasHandlers()
    logging.getLogger("uvicorn.error").warning("shutting down")
    assert only_line(capsys)["logger"] == "uvicorn.error"


def test_the_http_client_does_not_log_whole_urls(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    logging.getLogger("httpx2").info("GET https://user:hunter2@example.com")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [2**70, "\ud800", {("a", "tuple"): 1}, object(), {1, 2}])
def test_no_value_is_too_strange_to_be_logged(
    capsys: pytest.CaptureFixture[str], value: object
) -> None:
    log = configure()
    log.info("strange", value=value)
    assert only_line(capsys)["event"] == "strange"


def test_a_closed_stream_costs_the_line_and_not_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    log = configure()
    closed = (tmp_path / "closed").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    log.info("nobody hears this")
    # Where the descriptor was closed when Python started, there is no stream at all.
    monkeypatch.setattr(sys, "stdout", None)
    configure(Environment.DEVELOPMENT).info("nor this")


@pytest.mark.parametrize("environment", [Environment.DEVELOPMENT, Environment.TEST])
def test_people_get_plain_text_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], environment: Environment
) -> None:
    log = configure(environment)
    try:
        fail("hunter" + "2")
    except ValueError:
        log.exception("lending failed", total=3)
    written = capsys.readouterr().out
    assert "lending failed" in written
    assert "total=3" in written
    assert "ValueError: 7 characters" in written
    assert "hunter2" not in written
    assert "\x1b[" not in written


def test_what_a_client_sends_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log = configure(Environment.DEVELOPMENT)
    log.info("first\nsecond", path="/\x1b[2J\0\n\x9bx")
    written = capsys.readouterr().out
    assert r"/\x1b[2J\x00\x0a\x9bx" in written
    assert "first\nsecond" in written
    assert not {"\x1b", "\0", "\x9b"} & set(written)


def test_the_level_may_be_written_in_any_case() -> None:
    assert LoggingSettings.model_validate({"LOG_LEVEL": "debug"}).LOG_LEVEL == "DEBUG"


@pytest.mark.parametrize("level", ["LOUD", "", 10])
def test_an_unknown_level_is_refused_with_the_choices(level: Any) -> None:
    with pytest.raises(ValidationError, match="'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'"):
        LoggingSettings.model_validate({"LOG_LEVEL": level})


@pytest.mark.parametrize("environment", [Environment.PRODUCTION, Environment.DEVELOPMENT])
def test_what_somebody_has_sent_cannot_make_a_line_of_megabytes(
    capsys: pytest.CaptureFixture[str], environment: Environment
) -> None:
    configure(environment).warning("refused", error=f"first {'x' * 5_000_000} last")
    try:
        raise ValueError("x" * 5_000_000)
    except ValueError:
        configure().exception("failed")
    lines = capsys.readouterr().out
    assert len(lines) < 100_000
    assert "first xxx" in lines
    assert "xxx last" in lines
