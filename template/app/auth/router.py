"""The HTTP interface of logging in and out, of refreshing, and of one's sessions."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, Path, Request, Response

from app.auth.dependencies import ClientDep, LoginDep, SessionsDep
from app.auth.schemas import JsonWebKeySet, LoginForm, RefreshRequest, SessionRead, TokenPair
from app.core.access_tokens import AccessTokens
from app.core.errors import NotFoundError, responses
from app.core.pagination import Page, PageParamsDep
from app.core.security import CurrentUser

_PREFIX = "/api/v1/auth"
# A form, of which each character may take twelve bytes. Anybody may send one, and parsing it costs
# 300 ns a byte.
_MAX_BODY_SIZE = 20_480

public_router = APIRouter(
    prefix=_PREFIX, tags=["auth"], responses=responses(422, 429), max_body_size=_MAX_BODY_SIZE
)
# Behind the guard.
router = APIRouter(prefix=_PREFIX, tags=["auth"], responses=responses(422, 429))
# Where verifiers look for it (RFC 8615).
well_known_router = APIRouter(prefix="/.well-known", tags=["auth"], responses=responses(429))

SessionId = Annotated[UUID, Path(description="The session's `id`.")]


@public_router.post("/token", summary="Log in", responses=responses(401))
async def log_in(
    form: Annotated[LoginForm, Form()], login: LoginDep, client: ClientDep
) -> TokenPair:
    """Begin a session: an access token for the other routes, and a refresh token for the next one.

    The answer is the same, and takes as long, whether the account is unknown or the password
    wrong. Logins that fail are limited for each account and each address.
    """
    return await login.login(form, client)


@public_router.post("/refresh", summary="Refresh", responses=responses(401))
async def refresh(body: RefreshRequest, sessions: SessionsDep, client: ClientDep) -> TokenPair:
    """Exchange a refresh token for the next pair of tokens.

    It is good once. When one comes back that was used before, the whole session ends: it is in
    two hands. Only the latest may be sent again for some seconds, for clients that refresh twice
    at the same time.
    """
    return await sessions.refresh(body.refresh_token.get_secret_value(), client)


@public_router.post("/logout", summary="Log out", status_code=204)
async def log_out(body: RefreshRequest, sessions: SessionsDep) -> None:
    """End the session of a refresh token, its access tokens included."""
    await sessions.logout(body.refresh_token.get_secret_value())


@router.post("/logout-all", summary="Log out everywhere", status_code=204)
async def log_out_everywhere(user: CurrentUser, sessions: SessionsDep) -> None:
    """End every session that you have, this one as well."""
    await sessions.logout_everywhere(user)


@router.get("/sessions", summary="List sessions")
async def list_sessions(
    user: CurrentUser, sessions: SessionsDep, page: PageParamsDep
) -> Page[SessionRead]:
    """List where you are logged in, the last used first."""
    newest = await sessions.list_newest(user, page)
    items = [SessionRead.of(token, user.session_id) for token in newest.items]
    return Page[SessionRead](items=items, next_cursor=newest.next_cursor)


@router.delete(
    "/sessions/{session_id}", summary="End a session", status_code=204, responses=responses(404)
)
async def end_session(session_id: SessionId, user: CurrentUser, sessions: SessionsDep) -> None:
    """End one of your sessions, its access tokens included."""
    await sessions.end(user, session_id)


@well_known_router.get("/jwks.json", summary="Get the public keys", responses=responses(404))
async def get_jwks(request: Request, response: Response) -> JsonWebKeySet:
    """Get the keys that verify access tokens; there are none while tokens are signed with HS256."""
    access_tokens: AccessTokens = request.state.access_tokens
    if not access_tokens.keys.is_asymmetric:
        raise NotFoundError("Tokens are signed with a secret; nobody else can verify them.")
    response.headers["Cache-Control"] = "public, max-age=300"
    return JsonWebKeySet.model_validate(access_tokens.keys.jwks())
