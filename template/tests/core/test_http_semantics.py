"""What RFC 9110 and 9112 ask of the parts of answers that the stack adds or changes."""

import pytest
from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from app.core.compression import accepts_gzip
from app.core.conditional import Preconditions, PreconditionsDep
from tests.core.listening import dial, listening, read_all
from tests.core.stack import ORIGIN, build_app, client_of

router = APIRouter()
TAG = '"1"'
GZIPPED = '"1-gzip"'


@router.get("/list")
async def show_list(count: int) -> list[str]:
    """An answer of any size."""
    return [f"item {number}" for number in range(count)]


@router.get("/tagged")
async def show_tagged(preconditions: PreconditionsDep, count: int = 1000) -> Response:
    """An answer with a strong entity tag."""
    return preconditions.not_modified(TAG) or Response("item " * count, headers={"ETag": TAG})


@router.put("/tagged")
async def change_tagged(preconditions: PreconditionsDep) -> Response:
    """A write that may depend on the tag."""
    preconditions.require_match(TAG)
    return Response(status_code=204)


@router.get("/endless")
async def stream_endlessly() -> StreamingResponse:
    """A stream that only its reader ends."""

    async def parts() -> object:
        while True:
            yield b"part"

    return StreamingResponse(parts(), media_type="video/mp4")  # type: ignore[arg-type]


@router.post("/written")
async def write() -> str:
    """Something that cannot be read."""
    return "written"


@router.head("/own")
async def describe(response: Response) -> None:
    """A route for HEAD alone."""
    response.headers["X-Own"] = "yes"


@router.get("/health/live")
async def live() -> str:
    """A probe."""
    return "alive"


@pytest.mark.parametrize(
    "path", ["/list?count=3", "/list?count=1000", "/tagged", "/health/live", "/nowhere", "/docs"]
)
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_head_is_answered_as_get_without_the_body(path: str, encoding: str) -> None:
    async with client_of(build_app(router, ALLOWED_ORIGINS=[ORIGIN])) as client:
        headers = {"Accept-Encoding": encoding, "X-Request-ID": "mine"}
        get = await client.get(path, headers=headers)
        head = await client.head(path, headers=headers)
    assert head.status_code == get.status_code
    assert head.headers == get.headers
    assert head.content == b""


async def test_head_is_answered_by_a_real_server_and_ends_streams() -> None:
    async with listening(build_app(router)) as server, await dial(server) as stream:
        for path in ("/health/live", "/endless", "/list?count=5000"):
            await stream.send(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await stream.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = await read_all(stream)
    assert answers.count(b"HTTP/1.1 200 ") == 4
    assert answers.count(b"alive") == 1
    assert b"part" not in answers
    assert b"item" not in answers


async def test_head_is_allowed_where_get_is_and_a_route_of_its_own_is_kept() -> None:
    app = build_app(router)
    async with client_of(app) as client:
        assert (await client.delete("/tagged")).headers["allow"] == "GET, HEAD, PUT"
        refused = await client.head("/written")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert (await client.head("/own")).headers["x-own"] == "yes"
    assert "head" not in app.openapi()["paths"]["/tagged"]


async def test_a_script_may_send_head() -> None:
    async with client_of(build_app(router, ALLOWED_ORIGINS=[ORIGIN])) as client:
        headers = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "HEAD",
            "Access-Control-Request-Headers": "Authorization",
        }
        assert (await client.options("/list", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("x-gzip", True),
        ("*", True),
        ("gzip;q=0.8, identity;q=0.8", True),
        ("", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("gzip;q=0.5, identity", False),
        ("gzip;q=x", False),
        ("notgzip", False),
    ],
)
def test_gzip_is_for_who_accepts_it(value: str, *, accepted: bool) -> None:
    assert accepts_gzip(value) is accepted


async def test_each_form_has_a_tag_of_its_own() -> None:
    async with client_of(build_app(router)) as client:
        gzipped = await client.get("/tagged", headers={"Accept-Encoding": "gzip"})
        plain = await client.get("/tagged", headers={"Accept-Encoding": "gzip;q=0"})
        small = await client.get("/tagged?count=1")
    assert (gzipped.headers["etag"], gzipped.headers["content-encoding"]) == (GZIPPED, "gzip")
    assert plain.headers["etag"] == small.headers["etag"] == TAG
    assert "content-encoding" not in plain.headers
    for answer in (gzipped, plain, small):
        assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    ("encoding", "known", "answered"),
    [
        ("gzip", GZIPPED, GZIPPED),
        ("gzip", f"W/{GZIPPED}", GZIPPED),
        ("gzip", f'"0", {GZIPPED}', GZIPPED),
        ("gzip", TAG, TAG),
        ("gzip", "*", TAG),
        ("identity", TAG, TAG),
        # It has a form that it does not take any more.
        ("identity", GZIPPED, None),
        ("gzip", '"0-gzip"', None),
    ],
)
async def test_a_304_is_for_who_has_a_form_and_varies_as_the_200_does(
    encoding: str, known: str, answered: str | None
) -> None:
    async with client_of(build_app(router, ALLOWED_ORIGINS=[ORIGIN])) as client:
        headers = {"Accept-Encoding": encoding, "If-None-Match": known}
        answer = await client.get("/tagged", headers=headers)
    assert answer.headers["vary"] == "Accept-Encoding, Origin"
    assert answer.headers["cache-control"] == "private, no-cache"
    if answered is None:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.headers["etag"]) == (304, answered)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-Match": TAG}, 204),
        ({"If-Match": GZIPPED}, 204),
        ({"If-Match": GZIPPED, "Accept-Encoding": "identity"}, 204),
        ({"If-Match": '"0-gzip"'}, 412),
        ({"If-None-Match": '"0"'}, 204),
        ({"If-None-Match": "*"}, 412),
        ({"If-None-Match": f"W/{TAG}"}, 412),
    ],
)
async def test_a_write_may_depend_on_either_form(headers: dict[str, str], status: int) -> None:
    async with client_of(build_app(router)) as client:
        assert (await client.put("/tagged", headers=headers)).status_code == status


def test_preconditions_that_are_absent_refuse_nothing() -> None:
    Preconditions().require_match(TAG)


HOSTS = [
    ("1.1", [], 400),
    ("1.1", ["x"], 200),
    ("1.1", ["x", "x"], 400),
    ("1.1", ["x", "y"], 400),
    ("1.1", ["a b"], 400),
    ("1.1", ["user@x"], 400),
    ("1.0", [], 200),
    ("1.0", ["x", "y"], 400),
]


async def test_there_is_one_host() -> None:
    async with listening(build_app(router)) as server:
        for version, hosts, status in HOSTS:
            for path in ("/health/live", "/list?count=1"):
                head = [f"GET {path} HTTP/{version}", *(f"Host: {host}" for host in hosts)]
                async with await dial(server) as stream:
                    await stream.send("\r\n".join([*head, "Connection: close", "", ""]).encode())
                    answer = await read_all(stream)
                assert answer.startswith(f"HTTP/1.1 {status} ".encode()), head


async def test_a_probe_without_a_host_is_answered_whatever_hosts_are_trusted() -> None:
    app = build_app(router, TRUSTED_HOSTS=["api.example.com"])
    async with listening(app) as server:
        for path, status in (("/health/live", 200), ("/list?count=1", 400)):
            async with await dial(server) as stream:
                await stream.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                assert (await read_all(stream)).startswith(f"HTTP/1.1 {status} ".encode())
