"""How requests to log in reach the service: below a path prefix, too large, or too many."""

from urllib.parse import urlsplit

import httpx2
import pytest

from tests.fixtures.application import Connect, MakeApp

TOKEN = "/api/v1/auth/token"
UNREADABLE = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(("prefix", "path"), [("", TOKEN), ("/shop", f"/shop{TOKEN}")])
async def test_the_authorize_button_reaches_the_login(
    make_app: MakeApp, prefix: str, path: str
) -> None:
    app = make_app()
    transport = httpx2.ASGITransport(app=app, root_path=prefix)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
        schema = (await client.get(f"{prefix}/openapi.json")).json()
    [scheme] = schema["components"]["securitySchemes"].values()
    assert scheme["flows"]["password"]["tokenUrl"] == path
    assert [urlsplit(server["url"]).path for server in schema.get("servers", [])] == (
        [prefix] if prefix else []
    )


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (TOKEN, {"content": b"&" * 30_000}),
        ("/api/v1/auth/refresh", {"json": {"refresh_token": "x" * 30_000}}),
        ("/api/v1/auth/logout", {"json": {"refresh_token": "x" * 30_000}}),
        ("/api/v1/users", {"json": {"email": "x" * 30_000}}),
    ],
)
async def test_a_body_that_anybody_may_send_is_small(
    anonymous_client: httpx2.AsyncClient, path: str, content: dict[str, object]
) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if "content" in content else {}
    answer = await anonymous_client.post(path, headers=headers, **content)  # type: ignore[arg-type]
    assert answer.status_code == 413


async def test_a_login_past_the_limit_is_refused_before_its_form_is_parsed(
    make_app: MakeApp, connect: Connect
) -> None:
    async with connect(make_app(RATE_LIMIT_REQUESTS=1)) as client:
        answers = [await client.post(TOKEN, content=b"x", headers=UNREADABLE) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [400, 429]
    assert "retry-after" in answers[1].headers
