"""The middleware around every request: id, log line, late headers, deadline, last-resort 500."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import pytest
import structlog
from fastapi import APIRouter, BackgroundTasks, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import deadline
from app.core.background import BackgroundRunner
from app.core.deadline import deadline_suspended
from app.core.errors import NotFoundError
from app.core.logging import LoggingSettings, configure_logging
from app.core.settings import AppSettings, Environment
from tests.core.stack import ORIGIN, build_app, client_of, is_due_in

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
FRESH_ID = re.compile(r"[0-9a-f]{32}")

router = APIRouter(prefix="/api/v1")
logger = structlog.get_logger(__name__)


class LogSettings(AppSettings, LoggingSettings):
    """What logging needs to know."""


@router.get("/items/{item_id}")
async def read_item(item_id: int) -> int:
    """Bind something to the log context, as services do."""
    structlog.contextvars.bind_contextvars(item=item_id)
    logger.info("item read")
    return item_id


@router.get("/broken")
async def break_down() -> None:
    """Fail with something that clients must not see."""
    message = "password=hunter2"
    raise ValueError(message)


@router.get("/database")
async def database_down() -> None:
    """Fail as SQLAlchemy does when no connection gets free."""
    raise PoolTimeoutError("QueuePool limit of db.internal reached")


@router.get("/slow")
async def sleep() -> None:
    """Take longer than the deadline of the tests."""
    await anyio.sleep(60)


@router.get("/overdue")
async def be_overdue() -> None:
    """Be at work when the time is up."""
    is_due_in(0)
    await anyio.sleep(60)


@router.get("/stubborn")
async def finish_anyway() -> str:
    """Answer although cancelled."""
    is_due_in(0)
    try:
        await anyio.sleep(60)
    except asyncio.CancelledError:
        return "too late"
    return "in time"


@router.get("/shielded")
async def commit(request: Request) -> None:
    """Have shielded work, such as a commit, under way when the time is up."""
    is_due_in(0)
    with anyio.CancelScope(shield=True):
        await anyio.sleep(0.05)
        request.app.state.committed = True


@router.get("/committed")
async def commit_late() -> str:
    """Commit as the database does, past the deadline, and go on as FastAPI does."""
    is_due_in(0.01)
    with deadline_suspended(), anyio.CancelScope(shield=True):
        await anyio.sleep(0.05)
    await anyio.lowlevel.checkpoint()
    return "placed"


@router.get("/committed-and-stuck")
async def commit_and_hang() -> None:
    """Commit and then never come back."""
    is_due_in(0.01)
    with deadline_suspended():
        await anyio.lowlevel.checkpoint()
    await anyio.sleep(60)


@router.post("/upload")
async def upload(request: Request) -> int:
    """Read the whole body."""
    return len(await request.body())


@router.get("/stream")
async def stream() -> StreamingResponse:
    """Send for longer than the deadline."""
    is_due_in(0.3)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"
            await anyio.sleep(0.15)

    return StreamingResponse(chunks())


@router.get("/cut")
async def cut() -> StreamingResponse:
    """Fail halfway."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        message = "the disk is gone"
        raise OSError(message)

    return StreamingResponse(chunks())


@router.get("/background")
async def work_later(tasks: BackgroundTasks) -> str:
    """Answer at once and fail afterwards."""

    async def fail() -> None:
        message = "afterwards"
        raise RuntimeError(message)

    tasks.add_task(fail)
    return "accepted"


@router.get("/own-id")
async def choose_id(response: Response) -> str:
    """Set the header that is not a route's to set."""
    response.headers["X-Request-ID"] = "chosen"
    return "chosen"


@router.get("/late/{outcome}")
async def announce(request: Request, outcome: str) -> str:
    """Leave a header for whatever is answered."""
    request.scope["state"]["response_headers"]["RateLimit-Limit"] = "5"
    if outcome == "missing":
        raise NotFoundError
    if outcome == "broken":
        raise RuntimeError
    return outcome


@pytest.fixture
def service() -> FastAPI:
    return build_app(router, ALLOWED_ORIGINS=[ORIGIN], REQUEST_TIMEOUT_SECONDS=60)


@pytest.fixture
async def client(service: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(service) as client:
        yield client


@pytest.fixture
async def hurried_client() -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a service that gives a request next to no time."""
    async with client_of(build_app(router, REQUEST_TIMEOUT_SECONDS=0.05)) as client:
        yield client


class Lines:
    """The log lines written so far, as production writes them."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._lines: list[dict[str, Any]] = []

    def __call__(self, event: str) -> list[dict[str, Any]]:
        self._lines += [json.loads(line) for line in self._capture.readouterr().out.splitlines()]
        return [line for line in self._lines if line["event"] == event]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Lines:
    # Other tests may have used the modules' own loggers under another configuration.
    monkeypatch.setattr("app.core.exchange.logger", structlog.get_logger())
    monkeypatch.setattr("app.core.middleware.logger", structlog.get_logger())
    monkeypatch.setitem(globals(), "logger", structlog.get_logger())
    configure_logging(LogSettings(ENVIRONMENT=Environment.PRODUCTION, LOG_LEVEL="DEBUG"))
    return Lines(capsys)


async def exchange(app: ASGIApp, *received: Message, path: str, method: str = "GET") -> list[Any]:
    """One request to the bare interface, for clients that httpx2 cannot play."""
    messages = iter(received)
    sent: list[Any] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("sent", ["a", "A-z0.9_", "x" * 128])
async def test_a_valid_request_id_is_kept(client: httpx2.AsyncClient, sent: str) -> None:
    response = await client.get("/api/v1/items/1", headers={"X-Request-ID": sent})
    assert response.headers["x-request-id"] == sent


@pytest.mark.parametrize(
    "sent",
    [b"", b"<script>", b"x" * 129, b"x" * 10_000, b"a b", "é".encode(), b"abc\n", b"a,b", b"%41"],
)
async def test_any_other_request_id_is_replaced(client: httpx2.AsyncClient, sent: bytes) -> None:
    response = await client.get("/api/v1/items/1", headers={b"X-Request-ID": sent})
    assert FRESH_ID.fullmatch(response.headers["x-request-id"])


async def test_two_request_ids_are_replaced_by_one(client: httpx2.AsyncClient) -> None:
    headers = [("X-Request-ID", "one"), ("X-Request-ID", "two")]
    response = await client.get("/api/v1/items/1", headers=headers)
    [answered] = response.headers.get_list("x-request-id")
    assert FRESH_ID.fullmatch(answered)


async def test_a_route_cannot_answer_with_another_id(client: httpx2.AsyncClient) -> None:
    response = await client.get("/api/v1/own-id", headers={"X-Request-ID": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/api/v1/items/1", {}, 200),
        ("GET", "/api/v1/items/x", {}, 422),
        ("GET", "/nowhere", {}, 404),
        ("DELETE", "/api/v1/items/1", {}, 405),
        ("GET", "/api/v1/broken", {}, 500),
        ("GET", "/api/v1/database", {}, 503),
        ("GET", "/api/v1/overdue", {}, 504),
        ("POST", "/api/v1/upload", {"Content-Length": "2000000"}, 413),
        ("OPTIONS", "/api/v1/items/1", {"Access-Control-Request-Method": "GET"}, 200),
        ("OPTIONS", "/api/v1/items/1", {"Access-Control-Request-Method": "BREW"}, 400),
        ("GET", "/docs", {}, 200),
    ],
)
async def test_every_answer_carries_the_request_id_and_the_cors_headers(
    client: httpx2.AsyncClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    headers = {"X-Request-ID": "mine", "Origin": ORIGIN, **headers}
    response = await client.request(method, path, headers=headers)
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.headers["access-control-allow-origin"] == ORIGIN
    if status >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["request_id"] == "mine"


@pytest.mark.parametrize("debug", [False, True])
async def test_an_unexpected_error_is_answered_without_internals_and_logged_once(
    service: FastAPI, client: httpx2.AsyncClient, lines: Lines, *, debug: bool
) -> None:
    service.debug = debug
    response = await client.get("/api/v1/broken", headers={"X-Request-ID": "mine"})
    assert response.status_code == 500
    assert response.json() == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Something went wrong on our side; quote the request_id when you report it.",
        "instance": "/api/v1/broken",
        "request_id": "mine",
    }
    [line] = lines("unhandled_exception")
    assert line["request_id"] == "mine"
    assert line["level"] == "error"
    assert "Traceback" in line["exception"]
    assert "hunter2" in line["exception"]


async def test_a_database_without_a_free_connection_is_a_503_that_tells_nothing(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    response = await client.get("/api/v1/database")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "db.internal" not in response.text
    assert len(lines("database_unavailable")) == 1


async def test_errors_raised_by_other_middlewares_are_problems_too(service: FastAPI) -> None:
    def refuse(app: ASGIApp) -> ASGIApp:
        async def raise_error(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                raise NotFoundError(scope["path"])
            await app(scope, receive, send)

        return raise_error

    # Innermost, where no exception handler sees what it raises.
    service.user_middleware.append(Middleware(refuse))
    async with client_of(service) as client:
        response = await client.get("/api/v1/items/1")
    assert response.status_code == 404
    assert response.json()["detail"] == "/api/v1/items/1"


async def test_a_request_past_its_deadline_is_a_504(
    hurried_client: httpx2.AsyncClient, lines: Lines
) -> None:
    response = await hurried_client.get("/api/v1/slow")
    assert response.status_code == 504
    assert response.json()["detail"] == "The request took too long and was given up."
    assert len(lines("request_timed_out")) == 1
    assert lines("request")[0]["status"] == 504


async def test_a_handler_that_ignores_the_deadline_is_not_heard(client: httpx2.AsyncClient) -> None:
    response = await client.get("/api/v1/stubborn")
    assert response.status_code == 504
    assert "too late" not in response.text


async def test_shielded_work_is_finished_before_the_504(
    service: FastAPI, client: httpx2.AsyncClient
) -> None:
    await client.get("/api/v1/shielded")
    assert service.state.committed


async def test_what_was_committed_is_answered_although_the_time_is_up(
    client: httpx2.AsyncClient,
) -> None:
    response = await client.get("/api/v1/committed")
    assert (response.status_code, response.json()) == (200, "placed")


async def test_after_a_commit_the_time_is_limited_again(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.deadline._ANSWER_SECONDS", 0.1)
    response = await client.get("/api/v1/committed-and-stuck")
    assert response.status_code == 504


async def test_work_in_the_background_does_not_touch_the_request_s_deadline(
    service: FastAPI, client: httpx2.AsyncClient
) -> None:
    started, answered = anyio.Event(), anyio.Event()

    async def work() -> None:
        with deadline_suspended():
            started.set()
            await answered.wait()

    async with BackgroundRunner(AppSettings()) as runner:

        @service.get("/spawning")
        async def spawn() -> bool:
            scope = deadline._current.get()
            assert scope is not None
            due = scope.deadline
            runner.spawn("work", work)
            await started.wait()
            return scope.deadline == due

        assert (await client.get("/spawning")).json() is True
        answered.set()


async def test_a_body_that_does_not_arrive_in_time_is_a_408(
    hurried_client: httpx2.AsyncClient,
) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"x"
        await anyio.sleep(60)

    response = await hurried_client.post("/api/v1/upload", content=trickle())
    assert response.status_code == 408
    assert response.headers["connection"] == "close"


async def test_the_deadline_does_not_cut_an_answer_that_has_started(
    client: httpx2.AsyncClient,
) -> None:
    response = await client.get("/api/v1/stream")
    assert response.status_code == 200
    assert response.content == b"xxx"


async def test_an_error_halfway_is_logged_and_leaves_the_answer_incomplete(
    service: FastAPI, lines: Lines
) -> None:
    sent = await exchange(service, {"type": "http.request"}, {}, path="/api/v1/cut")
    assert sent[0]["status"] == 200
    assert all(message["more_body"] for message in sent[1:])
    [failure] = lines("request_failed_after_response_started")
    assert "the disk is gone" in failure["exception"]
    [line] = lines("request")
    assert (line["status"], line["aborted"], line["client"]) == (200, True, None)


async def test_an_error_in_a_background_task_is_logged_and_leaves_the_answer_alone(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    response = await client.get("/api/v1/background", headers={"X-Request-ID": "mine"})
    assert response.json() == "accepted"
    [failure] = lines("request_failed_after_response_started")
    assert failure["request_id"] == "mine"
    assert "aborted" not in lines("request")[0]


async def test_a_client_that_hangs_up_is_no_error(service: FastAPI, lines: Lines) -> None:
    half = {"type": "http.request", "body": b"x", "more_body": True}
    gone = {"type": "http.disconnect"}
    await exchange(service, half, gone, path="/api/v1/upload", method="POST")
    [line] = lines("request")
    assert line["status"] == 499
    assert not lines("unhandled_exception")


async def test_a_disconnect_that_reaches_the_middleware_is_no_error(lines: Lines) -> None:
    app = build_app(APIRouter())

    @app.get("/gone")
    async def gone() -> None:
        raise ClientDisconnect

    assert await exchange(app, {"type": "http.request"}, path="/gone") == []
    assert not lines("unhandled_exception")


async def test_a_request_that_the_stopping_server_cancels_is_a_503() -> None:
    app = build_app(router, REQUEST_TIMEOUT_SECONDS=60)
    sent: list[Any] = []
    started = anyio.Event()

    async def receive() -> Message:
        started.set()
        await anyio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/upload",
        "query_string": b"",
        "headers": [],
    }
    task = asyncio.ensure_future(app(scope, receive, send))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["status"] == 503


@pytest.mark.parametrize(("outcome", "status"), [("fine", 200), ("missing", 404), ("broken", 500)])
async def test_late_headers_are_put_on_whatever_is_answered(
    client: httpx2.AsyncClient, outcome: str, status: int
) -> None:
    response = await client.get(f"/api/v1/late/{outcome}")
    assert response.status_code == status
    assert response.headers["ratelimit-limit"] == "5"
    later = await client.get("/api/v1/items/1")
    assert "ratelimit-limit" not in later.headers


async def test_the_access_line_says_what_happened(client: httpx2.AsyncClient, lines: Lines) -> None:
    response = await client.get(
        "/api/v1/items/7?token=secret",
        headers={"X-Request-ID": "mine", "Authorization": "Bearer secret"},
    )
    [line] = lines("request")
    assert 0 < line.pop("duration_ms") < 10_000
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request",
        "level": "info",
        "request_id": "mine",
        "method": "GET",
        "route": "/api/v1/items/{item_id}",
        "path": "/api/v1/items/7",
        "status": 200,
        "bytes": len(response.content),
        "client": "203.0.113.7",
        # Bound by the route; the access line is the place to find it.
        "item": 7,
    }


async def test_paths_that_no_route_claims_share_one_label(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    await client.get("/wp-admin")
    await client.get("/.env")
    assert {line["route"] for line in lines("request")} == {"unmatched"}


async def test_health_probes_are_logged_for_debugging_only(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    await client.get("/health/live")
    assert lines("request")[0]["level"] == "debug"


async def test_what_a_request_binds_to_the_log_context_ends_with_it(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    await client.get("/api/v1/items/7", headers={"X-Request-ID": "first"})
    assert structlog.contextvars.get_contextvars() == {}
    await client.get("/nowhere", headers={"X-Request-ID": "second"})
    [inside] = lines("item read")
    assert inside["request_id"] == "first"
    second = lines("request")[1]
    assert second["request_id"] == "second"
    assert "item" not in second


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [
        ([TRACEPARENT], True),
        ([], False),
        ([TRACEPARENT, TRACEPARENT], False),
        ([TRACEPARENT.upper()], False),
        ([f"{TRACEPARENT}-00"], False),
        ([f'{TRACEPARENT[:-2]}"}}'], False),
    ],
)
async def test_the_lines_of_a_request_name_the_trace_that_it_belongs_to(
    client: httpx2.AsyncClient,
    lines: Lines,
    sent: list[str],
    is_kept: bool,
) -> None:
    await client.get("/api/v1/items/7", headers=[("traceparent", value) for value in sent])

    named = [line.get("traceparent") for line in (*lines("item read"), *lines("request"))]
    assert named == [TRACEPARENT if is_kept else None] * 2


async def test_what_was_bound_before_does_not_reach_a_request(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    structlog.contextvars.bind_contextvars(leak="leaked")
    await client.get("/nowhere")
    assert "leak" not in lines("request")[0]


async def test_concurrent_requests_keep_their_ids_apart(
    client: httpx2.AsyncClient, lines: Lines
) -> None:
    paths = [f"/api/v1/items/{number}" for number in range(20)]
    await asyncio.gather(
        *(client.get(path, headers={"X-Request-ID": path.rpartition("/")[2]}) for path in paths)
    )
    assert [(line["request_id"], line["item"]) for line in lines("item read")] == [
        (line["request_id"], int(line["request_id"])) for line in lines("item read")
    ]
    assert len(lines("item read")) == 20


async def test_only_requests_are_touched(service: FastAPI) -> None:
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Any] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    await service({"type": "lifespan", "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
