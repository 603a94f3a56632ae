"""What stands around the routes: origins, hosts, proxies, sizes, compression, security headers."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import ValidationError

from app.core.http_stack import HttpSettings
from tests.core.stack import ORIGIN, build_app, client_of

router = APIRouter()


@router.get("/caller")
async def show_caller(request: Request) -> dict[str, str | None]:
    """Who is asking, and how."""
    return {
        "host": request.client.host if request.client else None,
        "scheme": request.url.scheme,
    }


@router.get("/list")
async def show_list(count: int) -> list[str]:
    """An answer of any size."""
    return [f"item {number}" for number in range(count)]


@router.post("/upload")
async def upload(request: Request) -> int:
    """Read the whole body."""
    return len(await request.body())


@router.post("/upload/large", max_body_size=2000)
async def upload_more(request: Request) -> int:
    """Accept more than the other routes."""
    return len(await request.body())


@router.post("/ignore")
async def ignore() -> str:
    """Answer without looking at the body."""
    return "ignored"


@router.get("/page")
async def page() -> HTMLResponse:
    """Something for people."""
    return HTMLResponse("<p>Hello</p>")


@router.get("/own")
async def own(response: Response) -> str:
    """Set what would otherwise be set."""
    response.headers["Cache-Control"] = "public, max-age=60"
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    return "own"


@router.get("/tagged")
async def tagged(response: Response) -> str:
    """An answer that can be revalidated."""
    response.headers["ETag"] = '"1"'
    return "tagged"


@router.get("/health/live")
async def live() -> str:
    """A probe."""
    return "alive"


PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


async def test_a_named_origin_may_call_with_credentials_and_read_our_headers() -> None:
    async with client_of(build_app(router, ALLOWED_ORIGINS=[ORIGIN])) as client:
        response = await client.get("/caller", headers={"Origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-credentials"] == "true"
    exposed = set(response.headers["access-control-expose-headers"].split(", "))
    assert exposed >= {"X-Request-ID", "Retry-After", "ETag", "Location", "RateLimit-Remaining"}
    assert "Origin" in response.headers["vary"]


async def test_another_origin_gets_no_permission() -> None:
    async with client_of(build_app(router, ALLOWED_ORIGINS=[ORIGIN])) as client:
        headers = {"Origin": "https://evil.example.com"}
        response = await client.get("/caller", headers=headers)
        assert "access-control-allow-origin" not in response.headers
        response = await client.options("/upload", headers={**PREFLIGHT, **headers})
    assert response.status_code == 400
    assert response.json()["detail"] == "Disallowed CORS origin"
    assert "access-control-allow-origin" not in response.headers


async def test_a_preflight_of_a_named_origin_is_granted() -> None:
    async with client_of(build_app(router, ALLOWED_ORIGINS=[ORIGIN])) as client:
        headers = {**PREFLIGHT, "Access-Control-Request-Headers": "Idempotency-Key, If-Match"}
        response = await client.options("/upload", headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == "Idempotency-Key, If-Match"


async def test_every_origin_means_no_credentials() -> None:
    async with client_of(build_app(router, ALLOWED_ORIGINS=["*"])) as client:
        response = await client.get("/caller", headers={"Origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


async def test_without_origins_there_is_no_cors() -> None:
    async with client_of(build_app(router)) as client:
        response = await client.get("/caller", headers={"Origin": ORIGIN})
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert (await client.options("/upload", headers=PREFLIGHT)).status_code == 405


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com",
        "API.example.com:8000",
        # The port may be empty (RFC 3986, section 3.2.3).
        "api.example.com:",
        "eu.shop.example.com",
        "[::1]:80",
    ],
)
async def test_a_trusted_host_is_served(host: str) -> None:
    app = build_app(router, TRUSTED_HOSTS=["api.example.com", "*.shop.example.com", "[::1]"])
    async with client_of(app) as client:
        assert (await client.get("/caller", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com",
        "shop.example.com",
        "evilshop.example.com",
        "evil.com@api.example.com",
        "api.example.com/evil",
        "api.example.com:x",
        "api.example.com:80:80",
        "[::2]",
        "",
    ],
)
async def test_any_other_host_is_refused(host: str) -> None:
    app = build_app(router, TRUSTED_HOSTS=["api.example.com", "*.shop.example.com", "[::1]"])
    async with client_of(app) as client:
        response = await client.get("/caller", headers={"Host": host})
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_a_script_may_read_that_its_host_is_refused() -> None:
    app = build_app(router, TRUSTED_HOSTS=["api.example.com"], ALLOWED_ORIGINS=[ORIGIN])
    async with client_of(app) as client:
        headers = {"Host": "evil.example.com", "Origin": ORIGIN}
        response = await client.get("/caller", headers=headers)
    assert response.status_code == 400
    assert response.headers["access-control-allow-origin"] == ORIGIN


async def test_probes_may_call_by_address() -> None:
    async with client_of(build_app(router, TRUSTED_HOSTS=["api.example.com"])) as client:
        response = await client.get("/health/live", headers={"Host": "10.1.2.3:8000"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("forwarded", "caller"),
    [
        ("198.51.100.1", "198.51.100.1"),
        # The client itself wrote the first address; the proxy appended the second.
        ("192.0.2.66, 198.51.100.1", "198.51.100.1"),
        # Two of our proxies in a row.
        ("192.0.2.66, 198.51.100.1, 10.0.0.7", "198.51.100.1"),
    ],
)
async def test_a_trusted_proxy_names_the_caller(forwarded: str, caller: str) -> None:
    app = build_app(router, TRUSTED_PROXIES=["10.0.0.0/8"])
    headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"}
    async with client_of(app, address="10.0.0.1") as client:
        response = await client.get("/caller", headers=headers)
    assert response.json() == {"host": caller, "scheme": "https"}


@pytest.mark.parametrize("trusted", [[], ["10.0.0.0/8"]])
async def test_nobody_else_names_the_caller(trusted: list[str]) -> None:
    headers = {"X-Forwarded-For": "192.0.2.66", "X-Forwarded-Proto": "https"}
    async with client_of(build_app(router, TRUSTED_PROXIES=trusted)) as client:
        response = await client.get("/caller", headers=headers)
    assert response.json() == {"host": "203.0.113.7", "scheme": "http"}


async def chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    """A body that is sent without saying how long it is."""
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("size", [1000, 1001])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_may_be_as_large_as_the_limit(size: int, *, declared: bool) -> None:
    content: Any = b"x" * size if declared else chunked(b"x" * 500, b"x" * (size - 500))
    async with client_of(build_app(router, MAX_BODY_SIZE=1000)) as client:
        response = await client.post("/upload", content=content)
    if size == 1000:
        assert response.json() == 1000
    else:
        assert response.status_code == 413
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["title"] == "Content Too Large"


@pytest.mark.parametrize(("size", "status"), [(2000, 200), (2001, 413)])
async def test_a_route_can_have_a_limit_of_its_own(size: int, status: int) -> None:
    async with client_of(build_app(router, MAX_BODY_SIZE=1000)) as client:
        response = await client.post("/upload/large", content=b"x" * size)
    assert response.status_code == status


async def test_a_body_that_nobody_reads_does_no_harm() -> None:
    async with client_of(build_app(router, MAX_BODY_SIZE=10)) as client:
        response = await client.post("/ignore", content=b"x" * 1000)
    assert response.json() == "ignored"


async def test_large_answers_are_compressed_and_small_ones_are_not() -> None:
    async with client_of(build_app(router)) as client:
        large = await client.get("/list", params={"count": 1000})
        small = await client.get("/list", params={"count": 10})
        refused = await client.get(
            "/list", params={"count": 1000}, headers={"Accept-Encoding": "identity"}
        )
    assert large.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in large.headers["vary"]
    assert int(large.headers["content-length"]) < len(large.content) / 3
    assert "content-encoding" not in small.headers
    assert "content-encoding" not in refused.headers
    assert large.json() == refused.json()


async def test_answers_carry_security_headers() -> None:
    async with client_of(build_app(router)) as client:
        headers = (await client.get("/caller")).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store"
    assert "strict-transport-security" not in headers


async def test_browsers_are_told_to_use_https_only_where_it_is_served() -> None:
    async with client_of(build_app(router, https_only=True)) as client:
        response = await client.get("/caller")
    assert response.headers["strict-transport-security"] == "max-age=31536000"


async def test_a_route_has_the_last_word_on_its_headers() -> None:
    async with client_of(build_app(router)) as client:
        headers = (await client.get("/own")).headers
    assert headers.get_list("cache-control") == ["public, max-age=60"]
    assert headers.get_list("x-frame-options") == ["SAMEORIGIN"]


async def test_an_answer_with_an_etag_may_be_kept_to_be_revalidated() -> None:
    async with client_of(build_app(router)) as client:
        response = await client.get("/tagged")
    assert response.headers["cache-control"] == "private, no-cache"


async def test_a_page_may_load_what_it_needs_but_not_be_framed() -> None:
    async with client_of(build_app(router)) as client:
        response = await client.get("/page")
    assert response.headers["content-security-policy"] == "frame-ancestors 'none'"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALLOWED_ORIGINS", "https://shop.example.com/"),
        ("ALLOWED_ORIGINS", "https://shop.example.com/path"),
        ("ALLOWED_ORIGINS", "https://user:secret@shop.example.com"),
        ("ALLOWED_ORIGINS", "https://Shop.example.com"),
        ("ALLOWED_ORIGINS", "https://shop.example.com:443"),
        ("ALLOWED_ORIGINS", "https://shop.example.com:port"),
        ("ALLOWED_ORIGINS", "https://*.example.com"),
        ("ALLOWED_ORIGINS", "shop.example.com"),
        ("ALLOWED_ORIGINS", "ftp://shop.example.com"),
        ("ALLOWED_ORIGINS", "null"),
        ("TRUSTED_HOSTS", "https://api.example.com"),
        ("TRUSTED_HOSTS", "api.example.com:8000"),
        ("TRUSTED_HOSTS", "api.*.com"),
        ("TRUSTED_HOSTS", ""),
        ("TRUSTED_PROXIES", "10.0.0.0/99"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("TRUSTED_PROXIES", "proxy.internal"),
        ("TRUSTED_PROXIES", "*"),
        ("MAX_BODY_SIZE", "0"),
        ("MAX_BODY_SIZE", "1MB"),
        ("REQUEST_TIMEOUT_SECONDS", "0"),
        ("REQUEST_TIMEOUT_SECONDS", "inf"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(variable: str, value: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        HttpSettings(**{variable: value})
    [error] = refusal.value.errors()
    assert error["loc"] == (variable,)


def test_a_refused_entry_is_counted_and_not_repeated() -> None:
    with pytest.raises(ValidationError) as refusal:
        HttpSettings(ALLOWED_ORIGINS=[ORIGIN, "https://user:hunter2@shop.example.com"])
    [error] = refusal.value.errors()
    assert error["msg"].startswith("Value error, entry 2 is not an origin; write scheme://")
    assert "hunter2" not in error["msg"]


def test_usual_settings_are_accepted() -> None:
    settings = HttpSettings.model_validate(
        {
            "ALLOWED_ORIGINS": f"{ORIGIN},http://localhost:3000,http://[::1]:3000",
            "TRUSTED_HOSTS": '["api.example.com", "*.example.com", "[::1]"]',
            "TRUSTED_PROXIES": "10.0.0.0/8, 192.0.2.1, fd00::/8",
        }
    )
    assert settings.ALLOWED_ORIGINS == [ORIGIN, "http://localhost:3000", "http://[::1]:3000"]
    assert settings.TRUSTED_HOSTS == ["api.example.com", "*.example.com", "[::1]"]
    assert settings.TRUSTED_PROXIES == ["10.0.0.0/8", "192.0.2.1", "fd00::/8"]
    assert list(settings.production_problems()) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALLOWED_ORIGINS", ["https://a.example", "http://b.example"]),
        ("ALLOWED_ORIGINS", ["http://localhost.example"]),
        ("TRUSTED_PROXIES", ["10.0.0.1", "0.0.0.0/0"]),
        ("TRUSTED_PROXIES", ["0.0.0.0/1", "128.0.0.0/1"]),
        ("TRUSTED_PROXIES", ["::/0"]),
    ],
)
def test_production_refuses_what_means_everybody(variable: str, value: list[str]) -> None:
    [problem] = HttpSettings(**{variable: value}).production_problems()
    assert problem.startswith(f"{variable}: ")


def test_production_takes_private_networks_of_proxies() -> None:
    settings = HttpSettings(TRUSTED_PROXIES=["10.0.0.0/8", "fc00::/7", "192.0.2.1"])
    assert not list(settings.production_problems())


def test_production_refuses_every_origin() -> None:
    [problem] = HttpSettings(ALLOWED_ORIGINS=["*"]).production_problems()
    assert problem.startswith("ALLOWED_ORIGINS: ")
