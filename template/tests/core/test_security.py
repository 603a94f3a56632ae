"""The guard: who passes, how the others are answered, and what the schema says of it."""

from datetime import UTC, datetime
from typing import Annotated

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Security
from starlette.types import Receive, Scope, Send

from app.core.access_tokens import InvalidTokenError
from app.core.principal import PrincipalDep
from app.core.rate_limit import MemoryRateLimiter, RateLimitSettings
from app.core.security import CurrentUser, Identity, Role, authenticate, bearer, require_role
from tests.core.stack import build_app, client_of

router = APIRouter()


@router.get("/mine")
async def read_mine(principal: PrincipalDep) -> str:
    return principal.id


@router.get("/whoami")
async def who_am_i(user: CurrentUser) -> list[str]:
    return [user.id, user.role, user.session_id]


@router.get("/admins", dependencies=[require_role(Role.ADMIN)])
async def read_admins(user: CurrentUser) -> str:
    return user.id


@router.get("/users", dependencies=[require_role(Role.USER)])
async def read_users(admin: Annotated[Identity, Security(authenticate)]) -> str:
    return admin.id


class Tokens:
    """Accepts the tokens `user` and `admin`, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def authenticate(self, token: str) -> Identity:
        self.asked += 1
        if token not in ("user", "admin"):
            raise InvalidTokenError("unknown")
        expires_at = datetime(2030, 1, 1, tzinfo=UTC)
        return Identity(f"{token}'s id", Role(token), f"{token}'s session", expires_at)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
def service() -> FastAPI:
    guarded = APIRouter()
    guarded.include_router(router, dependencies=[Depends(authenticate)])
    return build_app(guarded)


@pytest.fixture
def client(service: FastAPI, tokens: Tokens) -> httpx2.AsyncClient:
    state = {
        "authenticator": tokens,
        "settings": RateLimitSettings(RATE_LIMIT_REQUESTS=3),
        "rate_limiter": MemoryRateLimiter(),
    }

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await service({**scope, "state": dict(state)}, receive, send)

    return client_of(with_state)


def as_(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {role}"}


@pytest.mark.parametrize("header", [None, "", "Basic dXNlcjp1c2Vy", "user", "Token user"])
async def test_without_a_token_nobody_passes(
    client: httpx2.AsyncClient, tokens: Tokens, header: str | None
) -> None:
    answer = await client.get("/mine", headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"].endswith("not-authenticated")
    assert tokens.asked == 0


@pytest.mark.parametrize("header", ["Bearer nobody", "Bearer", "Bearer ", "bearer user,admin"])
async def test_a_token_that_does_not_hold_is_refused(
    client: httpx2.AsyncClient, header: str
) -> None:
    answer = await client.get("/mine", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert answer.json()["type"].endswith("invalid-token")
    assert "nobody" not in answer.text


async def test_refused_tokens_are_limited_for_each_address(client: httpx2.AsyncClient) -> None:
    for _ in range(3):
        assert (await client.get("/mine", headers=as_("nobody"))).status_code == 401
        # What passes does not count, nor does what took no effort.
        assert (await client.get("/mine", headers=as_("user"))).is_success
        assert (await client.get("/mine")).status_code == 401
    refused = await client.get("/mine", headers=as_("nobody"))
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert (await client.get("/mine", headers=as_("user"))).is_success


async def test_whoever_passes_is_the_principal(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/mine", headers=as_("user"))).json() == "user's id"
    assert (await client.get("/mine", headers={"Authorization": "bearer user"})).is_success
    whoami = await client.get("/whoami", headers=as_("admin"))
    assert whoami.json() == ["admin's id", "admin", "admin's session"]


async def test_a_request_is_authenticated_once(client: httpx2.AsyncClient, tokens: Tokens) -> None:
    # By the router, by the route and by its parameter, with different scopes.
    assert (await client.get("/admins", headers=as_("admin"))).is_success
    assert tokens.asked == 1


async def test_a_role_that_does_not_suffice_is_forbidden(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/admins", headers=as_("user"))
    assert answer.status_code == 403
    expected = 'Bearer error="insufficient_scope", scope="admin"'
    assert answer.headers["WWW-Authenticate"] == expected
    assert answer.json()["type"].endswith("role-required")


@pytest.mark.parametrize("path", ["/admins", "/users", "/mine"])
async def test_admins_may_do_what_users_may(client: httpx2.AsyncClient, path: str) -> None:
    assert (await client.get(path, headers=as_("admin"))).json() == "admin's id"


def test_roles_are_ranked() -> None:
    assert Role.ADMIN.includes(Role.USER)
    assert Role.ADMIN.includes(Role.ADMIN)
    assert Role.USER.includes(Role.USER)
    assert not Role.USER.includes(Role.ADMIN)


def test_the_schema_says_which_role_a_route_takes(service: FastAPI) -> None:
    schema = service.openapi()
    [(name, scheme)] = schema["components"]["securitySchemes"].items()
    # What Swagger's Authorize button asks for a token.
    assert scheme["flows"]["password"]["tokenUrl"] == "/api/v1/auth/token"
    security = {path: item["get"]["security"] for path, item in schema["paths"].items()}
    assert security["/mine"] == [{name: []}]
    assert {name: ["admin"]} in security["/admins"]
    assert "admin" in bearer.model.flows.password.scopes  # type: ignore[attr-defined]


async def test_a_token_that_was_refused_is_not_looked_up_past_the_limit(
    client: httpx2.AsyncClient, tokens: Tokens
) -> None:
    answers = [await client.get("/mine", headers=as_("over")) for _ in range(10)]
    assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 7
    assert tokens.asked == 3
