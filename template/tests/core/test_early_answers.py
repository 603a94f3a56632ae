"""Answers that are given while the request's body is still coming, under a real server."""

import anyio
import httpx2
import pytest
from fastapi import APIRouter, Depends, Request, Response
from starlette.types import Receive, Scope, Send

from app.core import exchange
from app.core.rate_limit import MemoryRateLimiter, RateLimitSettings, rate_limit
from tests.core.listening import dial, listening, read_all
from tests.core.stack import build_app, client_of

router = APIRouter()
MEBIBYTE = 1_048_576


@router.post("/upload")
async def upload(request: Request) -> int:
    """Read the whole body."""
    return len(await request.body())


@router.post("/ignore")
async def ignore() -> str:
    """Answer without looking at the body."""
    return "ignored"


class Echo(Response):
    """Reads the body after the answer has started."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it back."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = (await receive())["body"]
        await send({"type": "http.response.body", "body": body})


@router.post("/echo")
async def echo() -> Response:
    """Leave the body to the answer."""
    return Echo()


@router.post("/parse", dependencies=[Depends(rate_limit(2, 60))])
async def parse(numbers: list[int]) -> int:
    """Have the body parsed."""
    return len(numbers)


def post(path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


EARLY = [
    ("/upload", ["Content-Length: 500000000"]),
    ("/ignore", ["Content-Length: 500"]),
    ("/nowhere", ["Transfer-Encoding: chunked"]),
    ("/ignore", ["Content-Length: 500", "Expect: 100-continue"]),
]


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_the_connection_is_closed_after_an_early_answer(
    http: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_LINGER_SECONDS", 0.01)
    async with listening(build_app(router, MAX_BODY_SIZE=1000), http=http) as server:
        for path, headers in EARLY:
            async with await dial(server) as stream:
                await stream.send(post(path, *headers))
                answer = await read_all(stream)
            head, _, body = answer.lower().partition(b"\r\n\r\n")
            assert b"\r\nconnection: close" in head, headers
            assert not answer.startswith(b"HTTP/1.1 100"), headers
            assert body, headers


async def test_little_is_read_after_an_early_answer() -> None:
    sent = 0
    async with (
        listening(build_app(router, MAX_BODY_SIZE=1000)) as server,
        await dial(server) as stream,
    ):
        await stream.send(post("/upload", f"Content-Length: {500 * MEBIBYTE}"))
        with pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):
            while True:
                await stream.send(b"x" * MEBIBYTE)
                sent += 1
    # The buffers of both ends are more than what is read.
    assert sent < 50


async def test_a_client_that_first_sends_and_then_reads_gets_the_answer() -> None:
    async with (
        listening(build_app(router, MAX_BODY_SIZE=1000)) as server,
        await dial(server) as stream,
    ):
        await stream.send(post("/upload", "Content-Length: 300000"))
        for _ in range(30):
            await stream.send(b"x" * 10_000)
        answer = await read_all(stream)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"status":413' in answer


async def test_who_goes_on_sending_after_the_answer_is_not_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange, "_LINGER_SECONDS", 30)
    async with (
        listening(build_app(router, MAX_BODY_SIZE=10)) as server,
        await dial(server) as stream,
    ):
        chunk = b"14\r\n" + b"x" * 20 + b"\r\n"
        await stream.send(post("/upload", "Transfer-Encoding: chunked", body=chunk))
        answer = await stream.receive()
        # Nothing more had come when it was written.
        for _ in range(20):
            await stream.send(chunk)
            await anyio.sleep(0.001)
        await stream.send(b"0\r\n\r\n")
        answer += await read_all(stream)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_the_connection_is_kept_where_the_whole_body_has_come() -> None:
    async with (
        listening(build_app(router)) as server,
        await dial(server) as stream,
    ):
        request = post("/ignore", "Content-Length: 5", body=b"hello")
        last = post("/upload", "Content-Length: 2", "Connection: close", body=b"hi")
        await stream.send(request + request + last)
        answers = await read_all(stream)
    assert answers.count(b"HTTP/1.1 200 ") == 3
    assert answers.count(b"connection: close") == 1


async def test_a_body_may_be_read_after_the_answer_has_started() -> None:
    async with (
        listening(build_app(router)) as server,
        await dial(server) as stream,
    ):
        request = post("/echo", "Content-Length: 5", "Connection: close", body=b"hello")
        await stream.send(request)
        answer = await read_all(stream)
    assert b"hello" in answer


async def test_a_caller_who_is_refused_costs_no_parsing() -> None:
    app = build_app(router)
    state = {"rate_limiter": MemoryRateLimiter(), "settings": RateLimitSettings()}

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    broken = {"Content-Type": "application/json"}
    async with client_of(with_state) as client:
        passed = await client.post("/parse", json=[1])
        unreadable = await client.post("/parse", content=b"[", headers=broken)
        refused = await client.post("/parse", content=b"[", headers=broken)
    # Each was counted once.
    assert (passed.status_code, passed.headers["ratelimit-remaining"]) == (200, "1")
    assert (unreadable.status_code, unreadable.headers["ratelimit-remaining"]) == (422, "0")
    assert (refused.status_code, refused.headers["ratelimit-remaining"]) == (429, "0")
    assert refused.headers["content-type"] == "application/problem+json"
    assert 1 <= int(refused.headers["retry-after"]) <= 60


async def test_a_client_library_sees_the_413_of_a_large_body() -> None:
    async with listening(build_app(router, MAX_BODY_SIZE=1000)) as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answer = await client.post("/upload", content=b"x" * MEBIBYTE)
            assert answer.status_code == 413
            assert (await client.post("/upload", content=b"x")).json() == 1
