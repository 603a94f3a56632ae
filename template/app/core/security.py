"""The guard of the API: who is asking, and whether their role suffices; it knows no user."""

from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Protocol

from fastapi import Depends, FastAPI, Request, Security
from fastapi.responses import JSONResponse
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from starlette.requests import HTTPConnection
from starlette.routing import Route

from app.core.access_tokens import InvalidTokenError
from app.core.errors import ForbiddenError, UnauthenticatedError
from app.core.principal import Principal, set_principal
from app.core.rate_limit import rate_limit
from app.core.roles import DESCRIPTIONS
from app.core.roles import Role as Role  # noqa: PLC0414 # is imported from here

TOKEN_PATH = "/api/v1/auth/token"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Identity(Principal):
    """A principal who has proved who they are; `id` is the user's.

    Args:
        role: Theirs now, whatever it was when the token was issued.
        session_id: The session that the token belongs to.
        expires_at: When the token does.
    """

    role: Role
    session_id: str
    expires_at: datetime


class Authenticator(Protocol):
    """Finds out whose token it is; the lifespan offers one as `state["authenticator"]`."""

    async def authenticate(self, token: str) -> Identity:
        """Return whose token it is, now.

        Raises:
            InvalidTokenError: it is not valid, or its session or user is not any more.
        """


class NotAuthenticatedError(UnauthenticatedError):
    """There is no token in the request."""

    code: ClassVar[str | None] = "not-authenticated"
    title: ClassVar[str | None] = "Not authenticated"


class RoleRequiredError(ForbiddenError):
    """The principal is known, and their role does not suffice."""

    code: ClassVar[str | None] = "role-required"
    title: ClassVar[str | None] = "Role required"


# The scheme of Swagger's Authorize button. Roles are its scopes, so that the schema shows on each
# route which one it takes; a token has all that its user has, whatever is asked for.
bearer = OAuth2PasswordBearer(
    tokenUrl=TOKEN_PATH,
    scopes={role.value: description for role, description in DESCRIPTIONS.items()},
    auto_error=False,
)

_limit_of_refused = rate_limit(scope="auth-refused")
_MAX_REFUSED = 10_000
# Hashes of tokens that were refused in this process, the least recently refused first.
_refused: OrderedDict[bytes, None] = OrderedDict()


async def authenticate(
    connection: HTTPConnection,
    scopes: SecurityScopes,
    token: Annotated[str | None, Depends(bearer)],
) -> Identity:
    """Let a request pass whose token holds, and say who acts in it.

    Raises:
        UnauthenticatedError: without a token, or with one that is not valid.
        TooManyRequestsError: when too many from this address were not.
        RoleRequiredError: when the role does not suffice.
    """
    state = connection.scope["state"]
    # Asked for by the router, by the route and by its parameters, and looked up once.
    identity: Identity | None = state.get("identity")
    if identity is None:
        if token is None:
            raise NotAuthenticatedError("Send an access token: `Authorization: Bearer ...`.")
        authenticator: Authenticator = state["authenticator"]
        digest = sha256(token.encode("utf-8", "replace")).digest()
        # The limits of the routes come after the guard, and count users. Whether an unknown token
        # is refused shows only when it is looked up; the same one again is not looked up in vain.
        counted = digest in _refused
        if counted:
            await _limit_of_refused(connection)
        try:
            identity = await authenticator.authenticate(token)
        except InvalidTokenError:
            _remember_refused(digest)
            if not counted:
                await _limit_of_refused(connection)
            raise
        state["identity"] = identity
        set_principal(connection, identity)
    for scope in scopes.scopes:
        if not identity.role.includes(Role(scope)):
            raise RoleRequiredError(
                f"This needs the role {scope}.",
                # RFC 6750, section 3.1.
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
            )
    return identity


def _remember_refused(digest: bytes) -> None:
    _refused[digest] = None
    _refused.move_to_end(digest)
    if len(_refused) > _MAX_REFUSED:
        _refused.popitem(last=False)


CurrentUser = Annotated[Identity, Security(authenticate)]
"""Who is asking: `async def route(user: CurrentUser)`."""


def serve_schema(app: FastAPI) -> None:
    """Have the Authorize button log in below the prefix that a proxy takes off, too.

    FastAPI names the prefix as the schema's server, which Swagger leaves out when it logs in.
    """
    if app.openapi_url is None:
        return

    async def show(request: Request) -> JSONResponse:
        schema = app.openapi()
        if prefix := request.scope.get("root_path", "").rstrip("/"):
            schema = {**deepcopy(schema), "servers": [{"url": prefix}]}
            scheme = schema["components"]["securitySchemes"][bearer.scheme_name]
            scheme["flows"]["password"]["tokenUrl"] = prefix + TOKEN_PATH
        return JSONResponse(schema)

    # Of two routes with one path the first answers.
    app.router.routes.insert(0, Route(app.openapi_url, show, include_in_schema=False))


def require_role(role: Role) -> Any:
    """A dependency that lets only this role pass: `dependencies=[require_role(Role.ADMIN)]`."""
    return Security(authenticate, scopes=[role.value])
